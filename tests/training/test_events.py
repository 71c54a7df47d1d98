"""What TensorBoard's own reader finds in a run's folder."""

import importlib.util
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import FABLES, ROOT, TINY, spawn

Call = Callable[..., tuple[int, str, str]]
FLAGS = ["--data", str(FABLES), *TINY, "--eval-interval", "10", "--sample-interval", "10"]
FLAGS += ["--eval-iters", "2", "--tensorboard"]


def in_events(folder: Path, boundary: int = -1) -> dict[tuple[str, int], float]:
    """The scalars by name and step. Nothing may be there twice, but where a phase ends and the next one begins."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    assert {"train_loss", "val_loss", "bits_per_character", "max_expert_load"} <= set(reader.Tags()["scalars"])
    assert any("sample" in tag for tag in reader.Tags()["tensors"])
    found = [((name, e.step), e.value) for name in reader.Tags()["scalars"] for e in reader.Scalars(name)]
    inside = [key for key, _ in found if key[1] != boundary]
    assert len(set(inside)) == len(inside)
    return dict(found)


def in_metrics(folder: Path, before: dict[str, int]) -> dict[tuple[str, int], float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        (name, before[line["phase"]] + line["iteration"]): value
        for line in lines
        for name, value in line.items()
        if name not in ("phase", "iteration", "expert_load")
    }


def test_events_are_the_metrics_in_two_phases_and_are_cleared(tmp_path: Path, call: Call) -> None:
    pytest.importorskip("tensorboard")
    flags = [*FLAGS[2:], "--pretrain-data", FABLES, "--finetune-data", FABLES, "--out-dir", tmp_path / "out"]
    flags += ["--max-iters-pretrain", 20, "--max-iters-finetune", 10, "--overwrite"]
    for _ in range(2):
        assert call("train", *flags)[0] == 0
        expected = in_metrics(tmp_path / "out", {"pretrain": 0, "finetune": 20})
        assert in_events(tmp_path / "out", 20) == pytest.approx(expected, rel=1e-6)
        assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 1


def test_a_killed_run_that_goes_on_shows_nothing_twice(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    out = tmp_path / "out"
    command = [ROOT / "train.py", *FLAGS, "--max-iters", "120", "--checkpoint-interval", "7", "--out-dir", out]
    process = spawn(command, tmp_path)
    while process.poll() is None and not _lines(out) > 20:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    again = spawn(command, tmp_path)
    said, errors = again.communicate()
    assert again.returncode == 0, errors
    assert "Resuming from the checkpoint" in said
    assert in_events(out) == pytest.approx(in_metrics(out, {"train": 0}), rel=1e-6)


def _lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="the package is there")
def test_without_the_package_one_line_says_what_to_install(tmp_path: Path, call: Call) -> None:
    code, _, err = call("train", *FLAGS, "--out-dir", tmp_path / "out")
    assert code == 2
    assert err.count("\n") == 1
    assert 'pip install -e ".[tensorboard]"' in err
    assert not (tmp_path / "out").exists()
