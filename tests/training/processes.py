"""Real runs of `train.py` in one process or several, for the tests that watch, stop and kill them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import FABLES, ROOT

SMALL = "--n-layer 2 --n-embd 32 --n-head 2 --block-size 32 --batch-size 7 --device cpu --lr 3e-3".split()  # noqa: SIM905
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(cwd: Path, *flags: object, launcher: Sequence[str] = (sys.executable,), **env: str) -> subprocess.Popen[str]:
    """`train.py` with these flags, as a process of its own."""
    words = [*launcher, ROOT / "train.py", "--data", FABLES, *SMALL, "--cache-dir", cwd / "cache", *flags]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen([str(word) for word in words], cwd=cwd, env=env, **pipes)  # type: ignore[call-overload,no-any-return]


def run(cwd: Path, *flags: object, launcher: Sequence[str] = (sys.executable,), **env: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `train.py`."""
    process = start(cwd, *flags, launcher=launcher, **env)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    """Until a file is there."""
    while not file.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def losses(folder: Path) -> list[float]:
    """All training and validation losses that a run has logged."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = "val_loss", "train_loss", "calibrated_val_loss"
    return [next(line[name] for name in names if name in line) for line in lines]


def weights(folder: Path) -> bytes:
    """The best weights of a run."""
    return (folder / "model.safetensors").read_bytes()


def processes(folder: Path | str) -> list[int]:
    """The processes of a run that writes to this folder, their launcher among them."""
    found = subprocess.run(["pgrep", "-f", f"train.*--out-dir {folder}( |$)"], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def ranks(folder: Path | str) -> dict[int, int]:
    """The ranks of a run and their processes."""
    found = {}
    for pid in processes(folder):
        try:
            words = dict(
                word.split("=", 1) for word in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in word
            )
        except OSError:
            continue
        if "RANK" in words:
            found[int(words["RANK"])] = pid
    return found


def kill(pids: Sequence[int], number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to processes, of which some may be gone."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
