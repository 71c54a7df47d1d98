"""A small instruct model of the Qwen2 family, made here: random weights, its own tokenizer and chat template."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mini_transformer.data.sources import read_documents
from mini_transformer.synthesis.prompts import embedded_recipe
from tests.synthesis.server import server  # noqa: F401  # a fixture

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def build_instruct_model(folder: Path) -> Path:
    """Write a tiny Qwen2 model whose answers are noise that ends after some twenty tokens."""
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet)
    core.train_from_iterator([embedded_recipe().read_text(encoding="utf-8")], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="right"
    )
    tokenizer.chat_template = CHATML
    end = core.token_to_id("<|im_end|>")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=core.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        eos_token_id=end,
        pad_token_id=core.token_to_id("<|endoftext|>"),
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():  # one direction that all states share lets the end have a chance of about 1 in 20
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight.normal_(0.0, 0.3)
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[end, 0] = 0.6
    # As Qwen2.5 does: it asks for sampling of its own kind, which must not add to ours.
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=20, top_p=0.8, eos_token_id=[end, 0])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def instruct_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny instruct model. Not to be changed."""
    return build_instruct_model(tmp_path_factory.mktemp("instruct") / "model")


def flags(model: Path | str, out: Path, *more: object) -> list[str]:
    """The flags of a small run on the CPU that keeps everything."""
    words = ["--model", model, "--out", out, "--max-new-tokens", 24, "--filters", "none", "--device", "cpu", *more]
    return [str(word) for word in words]


def lines(out: Path) -> list[dict[str, Any]]:
    """The record beside a training text: settings, samples and markers. Fails if a line is torn."""
    data = out.with_suffix(".jsonl").read_bytes()
    assert data.endswith(b"\n") or not data
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def records(out: Path) -> list[dict[str, Any]]:
    """The samples that were kept."""
    return [line for line in lines(out) if line.get("rejected", "") is None]


def rejected(out: Path) -> list[dict[str, Any]]:
    """The samples that were rejected."""
    return [line for line in lines(out) if line.get("rejected")]


def check_outputs(out: Path, numbers: Sequence[int]) -> None:
    """The samples are those of `numbers`, once each, and the training text is made of exactly their texts."""
    found = records(out)
    assert sorted(record["number"] for record in found) == sorted(numbers)
    assert read_documents((out,)) == [record["text"] for record in found]
