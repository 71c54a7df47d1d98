"""Several processes train as one. Real processes on gloo; those that take long are in `test_faults`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mini_transformer.config import ModelConfig
from mini_transformer.data.stream import TokenDocuments, TokenStream, validation_batches
from mini_transformer.model.decoder import Decoder
from tests.conftest import FABLES, ROOT

SMALL = "--n-layer 2 --n-embd 32 --n-head 2 --block-size 32 --batch-size 7 --device cpu --lr 3e-3".split()  # noqa: SIM905
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(cwd: Path, *flags: object, launcher: Sequence[str] = (sys.executable,)) -> subprocess.Popen[str]:
    """`train.py` with these flags, as a process of its own."""
    words = [*launcher, ROOT / "train.py", "--data", FABLES, *SMALL, "--cache-dir", cwd / "cache", *flags]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    return subprocess.Popen([str(word) for word in words], cwd=cwd, env=env, **pipes)  # type: ignore[call-overload,no-any-return]


def run(cwd: Path, *flags: object, launcher: Sequence[str] = (sys.executable,)) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `train.py`."""
    process = start(cwd, *flags, launcher=launcher)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def losses(folder: Path) -> list[float]:
    """All training and validation losses that a run has logged."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line.get("val_loss", line.get("train_loss")) for line in lines]


def ranks(folder: str) -> list[int]:
    """The processes of a run that writes to a folder of this name."""
    found = subprocess.run(["pgrep", "-f", f"train .*--out-dir {folder}"], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


SHAPES = {
    "experts": ["--dropout", 0.1, "--micro-batch-size", 1],  # 7 rows: 3 and 4, in three micro-batches each
    "dense": ["--dropout", 0.0, "--n-experts", 1, "--replay", 0.0],
}


@pytest.mark.parametrize(("parallel", "shape"), [("ddp", "experts"), ("fsdp", "experts"), ("ddp", "dense")])
def test_two_processes_train_as_one(tmp_path: Path, parallel: str, shape: str) -> None:
    flags = ["--max-iters", 30, "--eval-interval", 10, *SHAPES[shape]]
    assert run(tmp_path, *flags, "--out-dir", "one")[0] == 0
    code, out, err = run(tmp_path, *flags, "--out-dir", "two", "--nproc", 2, "--parallel", parallel)
    assert (code, err) == (0, "")
    assert out.count("train 30/30") == 1
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-3)
    assert (tmp_path / "two" / "generated_text.txt").is_file()
    record = json.loads((tmp_path / "two" / "run.json").read_text())["environment"]
    assert (record["processes"], record["parallel"]) == (2, parallel)


def test_torchrun_works_as_it_stands_and_a_stopped_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    flags = ["--max-iters", 40, "--eval-interval", 20, "--checkpoint-interval", 5]
    assert run(tmp_path, *flags, "--out-dir", "whole", "--nproc", 2)[0] == 0
    process = start(tmp_path, *flags, "--out-dir", "stopped", launcher=TORCHRUN)
    while not (tmp_path / "stopped" / "model.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert out.count("Stopped; the state is saved in stopped") == 1
    assert not ranks("stopped")
    code, out, _ = run(tmp_path, *flags, "--out-dir", "stopped", "--nproc", 2)
    assert code == 0
    assert "Resuming from the checkpoint" in out
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encoding", "utf-9"], "train: --encoding: 'utf-9' is not a known encoding; try utf-8, latin-1 or cp1252\n"),
        (["--batch-size", 1], "train: --batch-size 1: is less than the 2 processes\n"),
    ],
)
def test_an_error_is_said_once_and_ends_all_processes(tmp_path: Path, flags: list[object], message: str) -> None:
    code, _, err = run(tmp_path, *flags, "--out-dir", tmp_path / "out", "--nproc", 2)
    assert (code, err) == (2, message)
    assert not ranks(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_ctrl_c_saves_on_all_processes(tmp_path: Path) -> None:
    process = start(tmp_path, "--max-iters", 100_000, "--out-dir", tmp_path / "out", "--nproc", 2)
    while not (tmp_path / "out" / "model.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert len(re.findall("Stopped; the state is saved", out)) == 1
    assert not ranks(str(tmp_path / "out"))


def test_the_ranks_share_the_validation_text() -> None:
    array = torch.arange(1, 1000).numpy().astype("uint16")
    documents = TokenDocuments.of(array, torch.tensor([[499, 1, 0], [500, 1, 0]]).numpy())
    stream = TokenStream(documents, 0)
    for world, limit in ((1, 99), (2, 99), (3, 99), (4, 3), (8, 2)):
        seen, rounds = [], set()
        for rank in range(world):
            batches = list(validation_batches(stream, 4, 32, limit, rank, world))
            rounds.add(len(batches))
            seen += [targets.flatten() for _, targets, counts in batches if counts]
        assert len(rounds) == 1
        expected = stream.read(1, min(len(stream), 4 * 32 * limit + 1))
        assert sorted(torch.cat(seen).tolist()) == sorted(expected.tolist())


def test_a_dense_model_has_no_router_to_train() -> None:
    model = Decoder(ModelConfig(n_layer=1, n_embd=16, n_head=2, block_size=8, n_experts=1).resolve(20))
    model(torch.zeros((1, 8), dtype=torch.int64)).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == ("router" in name), name
