"""Runs that train an ensemble of teachers first."""

import json
from collections.abc import Callable
from pathlib import Path

from mini_transformer.commands.train import configure
from mini_transformer.training.ensemble import with_own_teachers
from tests.conftest import FABLES, TINY
from tests.training.test_initialisation import interrupt

Call = Callable[..., tuple[int, str, str]]
SOME = ["--eval-iters", 4, "--eval-interval", 20, "--sample-interval", 0]
FLAGS = ["--data", FABLES, *TINY, "--n-layer", 1, *SOME, "--max-iters", 40, "--seed", 2]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_an_ensemble_is_what_runs_and_one_with_teachers_are(tmp_path: Path, call: Call) -> None:
    out, first, second, third = (tmp_path / name for name in ("out", "1", "2", "3"))
    code, said, err = call("train", *FLAGS, "--ensemble", 2, "--out-dir", out)
    assert code == 0, err
    assert f"Teacher 2 of 2, in {out / 'teachers' / '2'}" in said
    for folder, seed, teachers in ((first, 3, []), (second, 4, []), (third, 2, [first, second])):
        flags = [*FLAGS[:-1], seed, *(["--teacher", *teachers] if teachers else []), "--out-dir", folder]
        assert call("train", *flags)[0] == 0
    assert weights(first) == weights(out / "teachers" / "1")
    assert weights(second) == weights(out / "teachers" / "2")
    assert weights(third) == weights(out)
    assert call("train", *FLAGS, "--ensemble", 2, "--out-dir", out)[1].count("this run is finished") == 3


def test_an_ensemble_that_was_stopped_goes_on(tmp_path: Path, call: Call) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    flags = [*FLAGS, "--ensemble", 1, "--out-dir"]
    assert call("train", *flags, whole)[0] == 0
    interrupt(call, stopped / "teachers" / "1", *flags, stopped, out_dir=stopped)
    assert not (stopped / "run.json").exists()
    interrupt(call, stopped, *flags, stopped)
    assert call("train", *flags, stopped)[0] == 0
    assert weights(stopped) == weights(whole)
    assert json.loads((stopped / "run.json").read_text())["finished"]


def test_what_does_not_go_together_is_refused_before_anything_is_trained(
    trained: Path, tmp_path: Path, call: Call
) -> None:
    code, _, err = call("train", *FLAGS, "--ensemble", 1, "--out-dir", trained)
    assert (code, err.startswith(f"train: --out-dir: {trained} holds a run without an ensemble; ")) == (2, True), err
    assert not (trained / "teachers").exists()
    code, _, err = call("train", *FLAGS, "--ensemble", 1, "--out-dir", trained, "--fork", tmp_path / "new")
    assert (code, err.startswith("train: --fork: ")) == (2, True), err


def test_each_part_has_minutes_of_its_own() -> None:
    """Those of a part that was stopped are not added to the next one's."""
    config = configure({"data": FABLES, "ensemble": 3, "max_minutes": 60.0})
    assert [part.run.max_minutes for part in with_own_teachers(config)] == [10, 10, 10, 30]
