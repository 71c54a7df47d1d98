"""The model folder in the hands of `transformers`."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mini_transformer.errors import UserError
from mini_transformer.evaluation.likelihood import measure, windows
from mini_transformer.export.huggingface import CONFIG, WEIGHTS, from_json, read_model, read_suppressed
from mini_transformer.generation.generator import Writer, generate_tokens
from mini_transformer.generation.sampling import Sampling
from mini_transformer.text.tokenizer import END
from tests.conftest import FABLES

CPU = torch.device("cpu")


@pytest.fixture(params=["trained", "perturbed"])
def folder(request: pytest.FixtureRequest, trained: Path, tmp_path: Path) -> Path:
    """A trained model; and the same with noise of the weights' own size, so that sinks, biases and router all show."""
    if request.param == "trained":
        return trained
    copy = shutil.copytree(trained, tmp_path / "perturbed")
    torch.manual_seed(0)
    weights = load_file(copy / WEIGHTS)
    noisy = {name: w + torch.randn_like(w) * w.std().clamp_min(0.02) for name, w in weights.items()}
    save_file(noisy, copy / WEIGHTS, metadata={"format": "pt"})
    return copy


def test_logits_equal_those_of_transformers(folder: Path) -> None:
    there = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(there).__name__ == "GptOssForCausalLM"
    here = read_model(folder, CPU)
    ids = torch.randint(here.config.vocab_size, (3, here.config.block_size))
    with torch.no_grad():
        expected = there(ids).logits
    torch.testing.assert_close(here(ids), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_tokens_equal_those_of_transformers(trained: Path) -> None:
    there = AutoTokenizer.from_pretrained(trained)
    here = Writer.load(trained, CPU).tokenizer
    for text in (FABLES.read_text(encoding="utf-8"), "Ž 日 🦊 l'été, « là » !\n\n\n  x\t", ""):
        ids = here.encode(text).tolist()
        assert there(text, add_special_tokens=False).input_ids == ids
        assert there(text).input_ids == [here.end_id, *ids]  # as our own prompts begin
        assert there.decode(ids) == text
    assert there.convert_tokens_to_ids(END) == there.bos_token_id == there.eos_token_id == here.end_id


def test_greedy_text_equals_that_of_transformers(folder: Path) -> None:
    there = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    writer = Writer.load(folder, CPU)
    prompt = tokenizer("Un renard", return_tensors="pt")
    count = writer.model.config.block_size - prompt.input_ids.shape[1]
    expected = there.generate(**prompt, do_sample=False, max_new_tokens=count, eos_token_id=[])[0].tolist()
    ids = expected[: prompt.input_ids.shape[1]]
    tokens = generate_tokens(writer.model, ids, Sampling(0), torch.Generator(), writer.suppressed)
    assert [*ids, *(next(tokens) for _ in range(count))] == expected


def judge(folder: Path, text: str) -> float:
    """Nats of a text by the rule of docs/measuring.md, through `transformers` alone and one window at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    end = tokenizer.convert_tokens_to_ids(END)
    ids = [end]
    for document in re.split(r"\n(?:[ \t]*\n){2,}", text.strip("\n")):
        ids += [*tokenizer(document, add_special_tokens=False).input_ids, end]
    nats = 0.0
    for first, start, stop in windows(len(ids), model.config.max_position_embeddings):
        with torch.no_grad():
            logits = model(torch.tensor([ids[first:stop]])).logits[0, start - first :].float()
        targets = torch.tensor(ids[start + 1 : stop + 1])
        nats += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return nats


def test_likelihood_equals_that_of_transformers(folder: Path) -> None:
    text = FABLES.read_text(encoding="utf-8")[:3000]
    writer = Writer.load(folder, CPU)
    found = measure(writer.model, writer.tokenizer, text)
    assert found.nats_per_token * found.tokens == pytest.approx(judge(folder, text), rel=1e-5)


def test_the_folder_holds_what_it_promises(trained: Path) -> None:
    weights = load_file(trained / WEIGHTS)
    plain = torch.load(trained / "model.pt", weights_only=True)
    assert plain.keys() == weights.keys()
    assert all(torch.equal(plain[name], w) for name, w in weights.items())
    assert "lm_head.weight" in weights
    config = json.loads((trained / CONFIG).read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is False
    assert config["layer_types"] == ["sliding_attention", "full_attention"]
    assert config["rope_parameters"]["rope_type"] == "yarn"
    assert config["rope_parameters"]["factor"] == 1.0
    assert config["sliding_window"] == config["max_position_embeddings"] == 32
    assert config["mini_transformer"]["tokenizer"] == "char"
    for name in ("generated_text.txt", "loss_curve.png", "metrics.jsonl", "generation_config.json"):
        assert (trained / name).stat().st_size > 0, name
    assert not list(trained.rglob("*.draft"))
    assert (trained / WEIGHTS).stat().st_mode == (trained / CONFIG).stat().st_mode


def damage(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    change(value)
    (folder / name).write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="llama"), "model_type is 'llama'"),
        (lambda c: c.pop("head_dim"), "the key 'head_dim' is missing"),
        (lambda c: c.update(swiglu_limit=9.0), r"swiglu_limit is 9.0, only 7.0"),
        (lambda c: c.update(hidden_size="32"), "n_embd is '32'"),
        (lambda c: c.update(sliding_window=None), "sliding_window is None"),
        (lambda c: c.update(layer_types=["full_attention"]), "layer_types must list 2"),
        (lambda c: c.update(num_key_value_heads=5), "do not fit"),
        (lambda c: c.update(rope_parameters={"rope_theta": 1e4}), "rope_type"),
        (lambda c: c["mini_transformer"].update(format=2), "format 2, this version of Mini-Transformer reads format 1"),
        (
            lambda c: c.update(num_hidden_layers=10**6, layer_types=["full_attention"] * 10**6),
            "holds no 1000000 layers",
        ),
        (lambda c: c.update(max_position_embeddings=10**9), "a context of 1000000000 tokens is beyond"),
        (lambda c: c.update(intermediate_size=10**12), r"has the shape .* asks for"),
        (lambda c: c.update(vocab_size=99999), r"has the shape .* asks for \(99999, 32\)"),
        (lambda c: c.update(num_hidden_layers=3, layer_types=["full_attention"] * 3), "layers.2.* is missing"),
    ],
)
def test_a_strange_configuration_is_refused(
    trained: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    folder = shutil.copytree(trained, tmp_path / "out")
    damage(folder, CONFIG, change)
    with pytest.raises(UserError, match=message):
        read_model(folder, CPU)


def test_what_is_no_configuration_is_refused() -> None:
    with pytest.raises(UserError, match="model_type is None"):
        from_json([])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.9])
def test_a_truncated_file_is_refused_by_name(trained: Path, tmp_path: Path, name: str, kept: float) -> None:
    folder = shutil.copytree(trained, tmp_path / "out")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError, match=re.escape(name)):
        Writer.load(folder, CPU)


def test_damaged_bytes_are_refused_or_do_no_harm(trained: Path, tmp_path: Path) -> None:
    """A file of a stranger with a few bytes changed, cut or doubled: one line, or it still reads; never a traceback."""
    chance = random.Random(0)
    folder = shutil.copytree(trained, tmp_path / "out")
    refused: list[str] = []
    for case in range(80):
        name = (CONFIG, WEIGHTS, "tokenizer.json", "generation_config.json")[case % 4]
        whole = (folder / name).read_bytes()
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(min(len(damaged), 6000))
            damaged[place : place + chance.randrange(12)] = chance.randbytes(chance.randrange(6))
        (folder / name).write_bytes(damaged)
        try:
            "".join(Writer.load(folder, CPU).write("Un été", 3, Sampling(), seed=1))
        except UserError as error:
            refused.append(str(error))
        (folder / name).write_bytes(whole)
    assert len(refused) > 40
    assert all("out" in line or "tokenizer.json" in line for line in refused)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "tokenizer.json"])
def test_a_missing_file_is_named(trained: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(trained, tmp_path / "out")
    (folder / name).unlink()
    with pytest.raises(UserError, match=re.escape(name)):
        Writer.load(folder, CPU)


def test_suppressed_tokens_must_be_ids(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "out")
    assert len(read_suppressed(folder)) > 50
    damage(folder, "generation_config.json", lambda c: c.update(suppress_tokens=["x"]))
    with pytest.raises(UserError, match="suppress_tokens"):
        read_suppressed(folder)
    (folder / "generation_config.json").unlink()
    assert read_suppressed(folder) == []
