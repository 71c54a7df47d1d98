"""Runs that start from another model's weights."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM

from mini_transformer.commands.train import parse_config
from mini_transformer.config import TrainConfig
from mini_transformer.data.prepare import prepare_data
from mini_transformer.errors import UserError
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.pretrained import config_from_json, read_model
from mini_transformer.text.tokenizer import Tokenizer
from mini_transformer.training.initialisation import Source
from tests.conftest import FABLES, TINY

Call = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")
QUICK = ["--batch-size", 4, "--eval-iters", 4, "--sample-interval", 0, "--device", "cpu"]
EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")


def configure(*words: object) -> TrainConfig:
    return parse_config([str(word) for word in ("--data", FABLES, *QUICK, *words)])


def begin(folder: Path, *words: object) -> tuple[Decoder, dict[str, torch.Tensor], Tokenizer]:
    """The model with which a run starts, its weights before those of the folder came, and its tokenizer."""
    config = configure("--init-from", folder, *words)
    tokenizer = prepare_data(config).tokenizer
    torch.manual_seed(config.run.seed)
    model = Decoder(config.model.resolve(tokenizer.vocab_size)).eval()
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Source.read(folder).copy_to(model, tokenizer)
    return model, fresh, tokenizer


def measured(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("tokens_per_second", "flop_utilisation")} for line in lines]


def interrupt(call: Call, folder: Path, *words: object, out_dir: Path | None = None) -> None:
    """Run a command (of `out_dir`, if not of `folder`), and interrupt it when it has trained ten iterations there."""

    def wait() -> None:
        while not (folder / "metrics.jsonl").is_file() or b"train_loss" not in (folder / "metrics.jsonl").read_bytes():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    code, out, err = call("train", *words)
    thread.join()
    assert code == 130, err
    assert f"the state is saved in {out_dir or folder}." in out


def test_logits_are_those_of_the_other_whatever_the_recipe_says(trained: Path) -> None:
    model, _, _ = begin(trained, "--recipe", "tiny", "--block-size", 48, "--n-kv-head", 0)
    there = read_model(trained, CPU)
    assert (model.config.n_embd, model.config.block_size, model.config.sliding_window) == (32, 48, 48)
    assert configure("--init-from", trained, "--recipe", "tiny").model.block_size == 128
    assert configure("--init-from", trained).model.block_size == 32
    ids = torch.randint(there.config.vocab_size, (2, 32))
    assert torch.equal(model(ids), there(ids))
    assert model(torch.zeros((1, 48), dtype=torch.int64)).isfinite().all()


def test_a_new_vocabulary_takes_the_rows_of_the_tokens_that_it_shares(trained: Path) -> None:
    model, fresh, tokenizer = begin(trained, "--tokenizer", "bpe", "--vocab-size", 400)
    there, known = load_file(trained / "model.safetensors"), Tokenizer.load(trained).backend.get_vocab()
    shared = 0
    for token, i in tokenizer.backend.get_vocab().items():
        for name in EMBEDDINGS:
            old = there[name if name.startswith("lm") else f"model.{name}"]
            expected = old[known[token]] if token in known else fresh[name][i]
            assert torch.equal(model.state_dict()[name][i], expected), token
        shared += token in known
    assert 257 <= shared < len(fresh["lm_head.weight"]) == 400
    assert torch.equal(model.norm.weight, there["model.norm.weight"])


@pytest.fixture
def foreign(trained: Path, tmp_path: Path) -> Path:
    """A random model that `transformers` wrote: tied, padded, stretched, with heads of a size of their own."""
    config = GptOssConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=8,
        num_local_experts=3,
        num_experts_per_tok=2,
        sliding_window=10,
        max_position_embeddings=64,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 5000.0,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 16,
        },
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    GptOssForCausalLM(config).save_pretrained(tmp_path / "foreign")
    shutil.copy(trained / "tokenizer.json", tmp_path / "foreign")
    return tmp_path / "foreign"


def test_a_model_of_transformers_is_trained_on(foreign: Path, tmp_path: Path, call: Call) -> None:
    model, _, _ = begin(foreign, "--block-size", 40)
    there = AutoModelForCausalLM.from_pretrained(foreign, dtype=torch.float32).eval()
    ids = torch.randint(model.config.vocab_size, (2, 40))
    with torch.no_grad():
        expected = there(ids).logits[..., : model.config.vocab_size]
    torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-5)
    assert (model.config.sliding_window, model.config.rope.original_context) == (10, 16)
    flags = ["--data", FABLES, "--init-from", foreign, "--block-size", 40, "--max-iters", 30, *QUICK]
    interrupt(call, tmp_path / "out", *flags, "--out-dir", tmp_path / "out")
    written = read_model(tmp_path / "out", CPU).config
    assert (written.rope, written.head_dim, written.tie_embeddings) == (model.config.rope, 8, False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n-embd", "64"], "`n_embd`: 64, but the model in {} (`init_from`) has 32; leave it out"),
        (["--n-layer", "3"], "`n_layer`: 3, but the model in {} (`init_from`) has 2; leave it out"),
        (["--sliding-window", "20"], "`sliding_window`: 20, but the model in {} (`init_from`) has 32; leave it out"),
        (["--out-dir", "{}"], "`init_from`: {} is the `out_dir` itself; a new run needs a folder of its own"),
        (["--init-from", "none"], "`init_from`: none: there is no such folder"),
    ],
)
def test_what_does_not_fit_is_refused(trained: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        configure("--init-from", trained, *(word.format(trained) for word in flags))
    assert str(caught.value) == message.format(trained)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_folder_without_a_whole_model_is_refused(trained: Path, tmp_path: Path, call: Call, name: str) -> None:
    folder = shutil.copytree(trained, tmp_path / "copy")
    flags = ["--data", FABLES, "--init-from", folder, "--tokenizer", "char", *QUICK, "--out-dir", tmp_path / "out"]
    (folder / name).write_bytes((folder / name).read_bytes()[:200])
    code, _, err = call("train", *flags)
    assert (code, err.count("\n"), name in err) == (2, 1, True), err
    (folder / name).rename(folder / f"{name}.index.json")
    code, _, err = call("train", *flags)
    why = "is in several files: save it as one" if "safe" in name else "is missing: there is no model here (yet)"
    assert (code, err) == (2, f"train: --init-from: {folder}: {name} {why}\n")
    assert not (tmp_path / "out").exists()


def test_a_run_starts_where_the_other_ended_and_goes_on_bit_for_bit(trained: Path, tmp_path: Path, call: Call) -> None:
    source, whole, out = shutil.copytree(trained, tmp_path / "source"), tmp_path / "whole", tmp_path / "out"
    flags = ["--data", FABLES, "--max-iters", 20, *QUICK, "--init-from"]
    code, text, err = call("train", *flags, source, "--out-dir", whole)
    assert code == 0, err
    vocabulary = Tokenizer.load(trained).vocab_size
    assert f"Init: {vocabulary} of {vocabulary} tokens have a row in {source}\n" in text
    best = measured(trained)[-1]["calibrated_val_loss"]
    assert measured(whole)[0]["val_loss"] == pytest.approx(best, abs=0.05)  # of fewer batches
    interrupt(call, out, *flags, source, "--out-dir", out)
    assert str(tmp_path) not in (out / "run.json").read_text()
    moved = source.rename(tmp_path / "moved")
    other = shutil.copytree(moved, tmp_path / "other")
    shutil.copy(whole / "model.safetensors", other)
    (other / "SHA256SUMS").unlink()  # the other weights are meant
    code, _, err = call("train", *flags, other, "--out-dir", out)
    assert (code, "(--init-from: the weights are others)" in err) == (2, True), err
    shape = [*TINY, "--dropout", 0.2, "--n-kv-head", 2, "--experts-per-token", 2, "--expert-hidden", 64]
    code, _, err = call("train", *flags[:-1], *shape, "--tokenizer", moved, "--out-dir", out)
    assert (code, "(--init-from: only one of the two runs has it)" in err) == (2, True), err
    code, text, err = call("train", *flags, moved, "--out-dir", out)
    assert (code, "Resuming from the checkpoint" in text) == (0, True), err
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert measured(out) == measured(whole)


def test_the_record_of_such_a_run_repeats_it(trained: Path, tmp_path: Path, call: Call) -> None:
    flags = ["--init-from", trained, "--tokenizer", "char", "--max-iters", 30, "--eval-interval", 5]
    interrupt(call, tmp_path / "out", "--data", FABLES, *QUICK, *flags, "--out-dir", tmp_path / "out")
    first, again = configure(*flags), ["--recipe", tmp_path / "out" / "run.json", "--out-dir", tmp_path / "again"]
    second = configure(*again, "--init-from", trained)
    assert (second.model, second.text, second.phases) == (first.model, first.text, first.phases)
    why = "it is the record of a run from a model's weights; name its folder as --init-from"
    assert call("train", "--data", FABLES, *again)[::2] == (2, f"train: --recipe: {why}\n")
    code, _, err = call("train", "--data", FABLES, *again, "--init-from", tmp_path / "out")
    assert (code, "the record of a run with another --init-from" in err) == (2, True), err
    assert not (tmp_path / "again").exists()


def test_the_settings_of_a_foreign_configuration_are_kept(foreign: Path) -> None:
    there = config_from_json(json.loads((foreign / "config.json").read_text()))
    here = configure("--init-from", foreign, "--dropout", 0.3).model.resolve(286)
    kept = ("n_layer", "n_embd", "n_head", "n_kv_head", "head_dim", "n_experts", "expert_hidden", "rope", "norm_eps")
    assert all(getattr(here, name) == getattr(there, name) for name in kept)
    assert (here.dropout, here.block_size, here.sliding_window) == (0.3, 64, 10)
