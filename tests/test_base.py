"""The base model that comes with the package: small, whole, readable by others, and a start for training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mini_transformer.generation.engine import Engine
from mini_transformer.model.pretrained import BASE, model_folder
from mini_transformer.text.fables import join_fables, load_fables

Call = Callable[..., tuple[int, str, str]]


def test_it_takes_six_megabytes_at_most() -> None:
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= 6_000_000


def test_it_knows_french_before_it_has_seen_a_fable(tmp_path: Path, call: Call) -> None:
    (tmp_path / "fables.txt").write_text(join_fables(load_fables()[:20]), encoding="utf-8")
    code, out, err = call("evaluate", "--model-dir", "base", "--data", tmp_path / "fables.txt", "--json")
    assert code == 0, err
    assert json.loads(out)["bits_per_character"] < 2.8


def test_transformers_reads_it_as_we_do() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    engine = Engine.load(BASE, torch.device("cpu"))
    ids = torch.from_numpy(engine.tokenizer.encode("Maître corbeau, sur un arbre perché,").astype("int64"))[None]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, engine.model(ids), atol=2e-4, rtol=2e-4)


def test_a_folder_of_its_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_folder(Path("base")) == BASE
    (tmp_path / "base").mkdir()
    assert model_folder(Path("base")) == Path("base")


def test_it_writes_where_there_is_no_other_model(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["generate", "--max-new-tokens", 20, "--seed", 1]
    code, out, err = call(*words)
    assert code == 0
    assert "the base model of the package writes" in err
    assert call(*words, "--model-dir", "base")[1] == out
    (tmp_path / "demo-out").symlink_to(trained)
    assert "the demo's model writes" in call(*words)[2]
    (tmp_path / "out").symlink_to(trained)
    assert call(*words)[2] == ""


def test_training_starts_from_it(tmp_path: Path, fables: Path, call: Call) -> None:
    flags = ["--data", fables, "--recipe", "finetune", "--max-iters", 3, "--eval-iters", 5]
    code, out, err = call("train", *flags, "--out-dir", tmp_path / "out")
    assert code == 0, err
    assert f"have a row in {BASE}" in out
    code, out, err = call("train", *flags, "--init-from", tmp_path / "out", "--out-dir", tmp_path / "next")
    assert code == 0, err
    assert f"have a row in {tmp_path / 'out'}" in out
