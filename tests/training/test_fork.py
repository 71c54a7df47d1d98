"""Unfinished runs that go on in another folder under other settings."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import FABLES, TINY
from tests.training.test_initialisation import interrupt, measured

Call = Callable[..., tuple[int, str, str]]
SOME = ["--eval-iters", 4, "--eval-interval", 20, "--sample-interval", 0]
FLAGS = ["--data", FABLES, *TINY, "--n-layer", 1, *SOME, "--max-iters", 40]


@pytest.fixture
def stopped(tmp_path_factory: pytest.TempPathFactory, call: Call) -> Path:
    """A run that was interrupted; made once, and given as a copy."""
    made = tmp_path_factory.getbasetemp() / "stopped"
    if not made.exists():
        interrupt(call, made, *FLAGS, "--out-dir", made)
    return shutil.copytree(made, tmp_path_factory.mktemp("fork") / "old")


def checkpoint(folder: Path) -> dict[str, object]:
    (path,) = (folder / "checkpoints").glob("*.pt")
    return torch.load(path, weights_only=True)  # type: ignore[no-any-return]


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_fork_trains_as_the_run_itself_would(stopped: Path, tmp_path: Path, call: Call) -> None:
    before, new, same = content(stopped), tmp_path / "new", tmp_path / "same"
    done = checkpoint(stopped)["progress"]["iteration"]  # type: ignore[index]
    flags = [*FLAGS, "--out-dir", stopped, "--fork"]
    code, out, err = call("train", *flags, new, "--eval-interval", 10)
    assert code == 0, err
    assert f"Resuming from the checkpoint at train {done}" in out
    interrupt(call, same, *flags, same)
    assert call("train", *flags, same)[0] == 0
    assert "this run is finished" in call("train", *flags, same)[1]
    assert "this run is finished" in call("train", *FLAGS, "--out-dir", same)[1]
    assert content(stopped) == before
    for folder, changed in ((new, {"eval_interval": [20, 10]}), (same, {})):
        record = json.loads((folder / "run.json").read_text())
        origin = {"settings": changed, "phase": "train", "iteration": done}
        assert (record["forked_from"], record["finished"]) == (origin, True)
    assert call("train", *FLAGS, "--out-dir", stopped)[0] == 0
    assert (same / "model.safetensors").read_bytes() == (stopped / "model.safetensors").read_bytes()
    assert measured(same) == measured(stopped)
    steps = [[line for line in measured(folder) if "train_loss" in line] for folder in (stopped, new)]
    assert steps[0] == steps[1]
    assert [line["iteration"] for line in steps[1]] == [10, 20, 30, 40]


def test_the_settings_of_the_optimizer_change(stopped: Path, tmp_path: Path, call: Call) -> None:
    new = tmp_path / "new"
    flags = ["--weight-decay", 0.5, "--beta1", 0.8, "--lr", 1e-4, "--batch-size", 8, "--dropout", 0, "--seed", 5]
    interrupt(call, new, *FLAGS, *flags, "--out-dir", stopped, "--fork", new)
    changed = json.loads((new / "run.json").read_text())["forked_from"]["settings"]
    names = {"weight_decay", "beta1", "lr", "batch_size", "dropout", "seed"}
    assert (set(changed), changed["dropout"]) == (names, [0.1, 0.0])


def test_a_fork_that_was_killed_while_it_was_made_is_made_anew(stopped: Path, tmp_path: Path, call: Call) -> None:
    new = tmp_path / "new"
    flags = [*FLAGS, "--lr", 1e-3, "--out-dir", stopped, "--fork", new]
    interrupt(call, new, *flags)
    shutil.rmtree(new / "checkpoints")
    for name in ("model.safetensors", "metrics.jsonl"):
        (new / name).unlink()
    interrupt(call, new, *flags)
    assert checkpoint(new)["progress"]["iteration"] >= checkpoint(stopped)["progress"]["iteration"]  # type: ignore[index]


def test_a_fork_begins_with_the_newest_checkpoint_that_is_whole(stopped: Path, tmp_path: Path, call: Call) -> None:
    (whole,) = (stopped / "checkpoints").glob("*.pt")
    flags = [*FLAGS, "--out-dir", stopped, "--fork"]
    damaged = whole.with_name("0-train-00000038.pt")
    content = bytearray(whole.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    code, out, err = call("train", *flags, tmp_path / "new")
    assert code == 0, err
    assert f"{damaged.name}: damaged (ValueError); going on from {whole.name}" in out
    whole.unlink()
    code, _, err = call("train", *flags, tmp_path / "other")
    assert (code, err) == (2, f"train: {damaged}: damaged (ValueError)\n")
    assert not (tmp_path / "other").exists()


def test_what_a_fork_cannot_change_is_refused(stopped: Path, tmp_path: Path, call: Call) -> None:
    new, text = tmp_path / "new", tmp_path / "text.txt"
    text.write_text("Un autre texte. " * 100)
    begin = ["--out-dir", stopped, "--fork", new]
    otherwise = f"--init-from {stopped} --out-dir {new} starts a new run from its weights"
    two = ["--pretrain-data", FABLES, "--finetune-data", FABLES]
    for words, difference in (
        ([*FLAGS, "--n-layer", 3], "--n-layer: 1 there, 3 here"),
        ([*FLAGS, "--block-size", 16], "--block-size: 32 there, 16 here"),
        ([*FLAGS, "--tokenizer", "bpe"], "--tokenizer: the tokenizer is another one"),
        ([*FLAGS, "--val-data", text], "--data: the text is another one"),
        ([*two, *TINY, "--n-layer", 1, *SOME], "--pretrain-data: only one of the two runs has it"),
    ):
        code, _, err = call("train", *words, *begin)
        assert (code, err.count("\n")) == (2, 1), err
        assert f"({difference}); a fork keeps" in err
        assert err.endswith(f"{otherwise}\n")
    code, _, err = call("train", *FLAGS, "--max-iters", 1, *begin)
    assert (code, "--max-iters: 1, but the run is at iteration" in err) == (2, True), err
    assert not new.exists()


def test_where_there_is_nothing_to_fork_is_refused(stopped: Path, trained: Path, tmp_path: Path, call: Call) -> None:
    new = tmp_path / "new"
    for out, fork, message in (
        (tmp_path / "none", new, f"--fork: {tmp_path / 'none'} (--out-dir) holds no run to go on with"),
        (stopped, stopped, f"--fork: {stopped} is the folder of the run itself; choose another --fork"),
    ):
        assert call("train", *FLAGS, "--out-dir", out, "--fork", fork)[::2] == (2, f"train: {message}\n")
    flags = ["--data", FABLES, "--max-iters", 20, "--eval-interval", 10, "--lr", 3e-3, *TINY]
    code, _, err = call("train", *flags, "--lr", 1e-3, "--out-dir", trained, "--fork", new)
    assert (code, err.startswith(f"train: --fork: the run in {trained} is finished; --init-from ")) == (2, True), err
    shutil.rmtree(stopped / "checkpoints")
    code, _, err = call("train", *FLAGS, "--out-dir", stopped, "--fork", new)
    assert (code, "holds no checkpoint yet; --init-from " in err) == (2, True), err
    assert not new.exists()


def test_a_folder_with_another_run_is_not_forked_into(stopped: Path, trained: Path, tmp_path: Path, call: Call) -> None:
    other = shutil.copytree(trained, tmp_path / "other")
    copy = shutil.copytree(stopped, tmp_path / "copy")
    for folder in (other, copy):
        before = content(folder)
        code, _, err = call("train", *FLAGS, "--out-dir", stopped, "--fork", folder)
        why = "holds a run with other settings (it is another fork, or none); choose another --fork"
        assert (code, f"--fork: {folder} {why}" in err) == (2, True), err
        assert content(folder) == before


def test_a_run_with_other_settings_names_the_ways_on(stopped: Path, trained: Path, tmp_path: Path, call: Call) -> None:
    def refusal(*words: object) -> str:
        code, _, err = call("train", *words)
        assert (code, err.count("\n")) == (2, 1)
        return err.partition("); ")[2].strip()

    end = "--overwrite gives that run up"
    assert (
        refusal(*FLAGS, "--lr", 1e-3, "--out-dir", stopped)
        == f"--fork NEWDIR goes on with it under these settings; {end}"
    )
    assert refusal(*FLAGS, "--n-layer", 3, "--out-dir", stopped) == f"choose another --out-dir; {end}"
    folder = shutil.copytree(trained, tmp_path / "my run")
    start = f"--init-from '{folder}' --out-dir NEWDIR"
    assert refusal(*FLAGS, "--n-layer", 2, "--out-dir", folder) == f"{start} starts a new run from its weights; {end}"
    flags = ["--data", FABLES, "--max-iters", 20, "--eval-interval", 10, "--lr", 3e-3, *TINY]
    assert f"{start} starts from its weights)" in call("train", *flags, "--out-dir", folder)[1]


def test_a_record_that_is_no_record_is_named(stopped: Path, call: Call) -> None:
    whole = json.loads((stopped / "run.json").read_text())
    for part in ("settings", "fingerprints", "environment", "forked_from"):
        (stopped / "run.json").write_text(json.dumps(whole | {part: [[]]}))
        code, _, err = call("train", *FLAGS, "--out-dir", stopped)
        assert (code, err) == (2, f"train: {stopped / 'run.json'}: damaged; --overwrite starts anew\n")
