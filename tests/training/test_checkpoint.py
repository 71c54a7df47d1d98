"""Checkpoints: killed runs go on exactly, on as many processes as one likes; what is kept; damage and full disks."""

import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mini_transformer.config import ModelConfig, OptimConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.training import sharded
from mini_transformer.training.checkpoint import Checkpoints, Progress, State
from mini_transformer.training.fork import copy_checkpoint
from mini_transformer.training.optimizer import make_optimizer
from mini_transformer.training.parallel import snapshot
from tests.conftest import FABLES, ROOT, TINY, spawn

Call = Callable[..., tuple[int, str, str]]
FLAGS = [*TINY, "--eval-iters", "5", "--sample-interval", "0"]
ONE, DDP, FSDP = [], ["--nproc", "2", "--parallel", "ddp"], ["--nproc", "2", "--parallel", "fsdp"]  # type: ignore[var-annotated]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def unfinish(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"finished": False}))


@pytest.fixture
def two_phases(tmp_path: Path, call: Call) -> tuple[list[object], Path]:
    """The flags and the folder of a run of which two checkpoints are there: those of its phases' ends."""
    text = FABLES.read_text(encoding="utf-8")
    for name, part in (("first", text[: len(text) // 2]), ("second", text[len(text) // 2 :])):
        (tmp_path / name).write_text(part, encoding="utf-8")
    flags: list[object] = ["--pretrain-data", tmp_path / "first", "--finetune-data", tmp_path / "second", *FLAGS]
    flags += [
        "--max-iters-pretrain",
        4,
        "--max-iters-finetune",
        5,
        "--checkpoint-interval",
        100,
        "--cache-dir",
        tmp_path / "cache",
    ]
    flags += ["--out-dir", tmp_path / "out", "--keep-checkpoints"]
    assert call("train", *flags)[0] == 0
    unfinish(tmp_path / "out")
    assert names(tmp_path / "out") == ["0-pretrain-00000004.pt", "1-finetune-00000005.pt"]
    return flags, tmp_path / "out"


def test_the_newest_the_best_and_the_ends_of_phases_are_kept(tmp_path: Path, tiny_config: ModelConfig) -> None:
    model = Decoder(tiny_config)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for phase, iteration, best in [(0, 5, 0), (0, 10, 10), (0, 15, 10), (0, 20, 10), (0, 25, 10), (0, 30, 10)]:
        state = State(model, make_optimizer(model, OptimConfig()), {}, Progress(phase, iteration, 1.0, (0, best)))
        checkpoints.save(state, "pretrain")
    assert [p.name[2:-3] for p in checkpoints.paths()] == [f"pretrain-000000{i}" for i in (10, 25, 30)]
    for iteration, best in [(5, (0, 10)), (10, (0, 10)), (15, (0, 10)), (20, (1, 5))]:
        state.progress = Progress(1, iteration, 1.0, best)
        checkpoints.save(state, "finetune")
    left = ["0-pretrain-00000030.pt", "1-finetune-00000015.pt", "1-finetune-00000020.pt"]
    assert [p.name for p in checkpoints.paths()] == left
    copy_checkpoint(checkpoints.paths()[-1], tmp_path / "other")
    assert (tmp_path / "other" / left[-1]).read_bytes() == checkpoints.paths()[-1].read_bytes()


def test_a_finished_run_drops_its_checkpoints_unless_told_to_keep_them(tmp_path: Path, call: Call) -> None:
    flags = ["--data", FABLES, *FLAGS, "--max-iters", 3, "--out-dir"]
    assert call("train", *flags, tmp_path / "a")[0] == 0
    assert not (tmp_path / "a" / "checkpoints").exists()
    assert call("train", *flags, tmp_path / "b", "--keep-checkpoints", "--keep", 1)[0] == 0
    assert names(tmp_path / "b") == ["0-train-00000003.pt"]
    assert "this run is finished" in call("train", *flags, tmp_path / "b")[1]  # neither setting makes it another run


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    two_phases: tuple[list[object], Path], call: Call
) -> None:
    flags, out = two_phases
    before = weights(out)
    newest = out / "checkpoints" / "1-finetune-00000005.pt"
    newest.write_bytes(newest.read_bytes()[:5000])
    code, said, err = call("train", *flags)
    assert (code, err) == (0, "")
    assert re.search(r"1-finetune-00000005.pt: damaged \(\w+\); going on from 0-pretrain-00000004.pt\n", said)
    assert weights(out) == before
    assert torch.load(newest, weights_only=True)["progress"]["iteration"] == 5  # saved anew


@pytest.fixture
def two_checkpoints(tmp_path: Path, tiny_config: ModelConfig) -> tuple[Checkpoints, Callable[[], State]]:
    """Two checkpoints, at iterations 1 and 2 of 2, and what makes a state to load them into."""

    def fresh() -> State:
        torch.manual_seed(0)
        model = Decoder(tiny_config)
        return State(model, make_optimizer(model, OptimConfig()), {}, Progress())

    checkpoints, state = Checkpoints(tmp_path / "checkpoints"), fresh()
    for iteration in (1, 2):
        state.model(torch.ones((1, 4), dtype=torch.int64)).sum().backward()
        state.optimizer.step()
        state.best = snapshot(state.model)
        state.progress = Progress(0, iteration, 1.0, (0, iteration), [1.0], iteration)
        checkpoints.save(state, "train")
    return checkpoints, fresh


def same(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


def test_a_flipped_bit_is_found_or_does_no_harm(
    two_checkpoints: tuple[Checkpoints, Callable[[], State]], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints, fresh = two_checkpoints
    newest = checkpoints.paths()[-1]
    whole, chance, taken = newest.read_bytes(), random.Random(0), 0
    before, after = fresh(), fresh()
    Checkpoints(checkpoints.folder).load(after, [2])
    newest.rename(newest.with_suffix(".away"))
    Checkpoints(checkpoints.folder).load(before, [2])
    newest.with_suffix(".away").rename(newest)
    for case in range(24):
        damaged, place = bytearray(whole), chance.randrange(len(whole))
        if case % 3:
            damaged[place] ^= 1 << chance.randrange(8)
        else:  # a block that the disk gives back as zeros
            damaged[place : place + 512] = bytes(512)
            damaged = damaged[: len(whole)]
        newest.write_bytes(damaged)
        state = fresh()
        assert Checkpoints(checkpoints.folder).load(state, [2])
        said = capsys.readouterr().out
        expected = before if said else after
        taken += not said
        assert not said or re.fullmatch(
            r"0-train-00000002.pt: damaged \(\w+\); going on from 0-train-00000001.pt\n", said
        )
        assert state.progress == expected.progress
        assert same(state.tensors(), expected.tensors())
    assert taken < 6  # in the padding


STRANGE: list[Callable[[dict[str, Any]], object]] = [
    lambda note: note.clear(),
    lambda note: note["tensors"].pop("model"),
    lambda note: note["tensors"].update(other={}),
    lambda note: note["tensors"]["model"].pop("norm.weight"),
    lambda note: note["tensors"]["model"].update(more=torch.zeros(3)),
    lambda note: note["tensors"]["best"].update({"norm.weight": torch.zeros(3)}),
    lambda note: note["tensors"]["model"].update({"norm.weight": 3}),
    lambda note: note["tensors"]["optimizer"].popitem(),
    lambda note: note["tensors"]["optimizer"]["norm.weight"].update(step=torch.zeros(7)),
    lambda note: note["progress"].update(phase=1),
    lambda note: note["progress"].update(phase=-1),
    lambda note: note["progress"].update(iteration=3),
    lambda note: note["progress"].update(iteration="2"),
    lambda note: note["progress"].update(best_step=(0, 3)),
    lambda note: note["progress"].update(losses=["1"]),
    lambda note: note["progress"].update(more=1),
    lambda note: note["progress"].update(evaluated=3),
    lambda note: note.update(progress=3),
]


@pytest.mark.parametrize("change", STRANGE)
def test_a_checkpoint_of_another_structure_is_damaged(
    two_checkpoints: tuple[Checkpoints, Callable[[], State]],
    change: Callable[[dict[str, Any]], object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoints, fresh = two_checkpoints
    newest, state = checkpoints.paths()[-1], fresh()
    note = torch.load(newest, weights_only=True)
    change(note)
    torch.save(note, newest)
    assert Checkpoints(checkpoints.folder).load(state, [2])
    assert state.progress.iteration == 1
    assert "0-train-00000002.pt: damaged" in capsys.readouterr().out


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_loading_runs_no_code(two_phases: tuple[list[object], Path], tmp_path: Path, call: Call) -> None:
    flags, out = two_phases
    evil = pickle.dumps(Evil(tmp_path / "marker"))
    for path in (out / "checkpoints").iterdir():
        path.write_bytes(evil)
    folder = out / "checkpoints" / "1-finetune-00000007.dcp"
    folder.mkdir()
    for name in (".metadata", "__0_0.distcp", "shard-00001-model-00001-of-00001.safetensors"):
        (folder / name).write_bytes(evil)
    note = {"progress": {}, "metrics_size": 0, "kinds": ["model"], "files": {name: len(evil)}}
    (folder / "checkpoint.json").write_text(json.dumps(note))
    code, _, err = call("train", *flags)
    assert code == 2
    assert re.fullmatch(r"train: .*1-finetune-00000007.dcp: damaged \(\w+\); --overwrite starts anew\n", err)
    assert not (tmp_path / "marker").exists()


def test_a_folder_of_parts_goes_on_in_one_process(tmp_path: Path, call: Call) -> None:
    flags = ["--data", FABLES, *FLAGS, "--max-iters", 60, "--eval-interval", 20, "--checkpoint-interval", 20]
    flags += ["--keep-checkpoints", "--cache-dir", tmp_path / "cache", "--out-dir"]
    assert call("train", *flags, tmp_path / "whole")[0] == 0
    assert call("train", *flags, tmp_path / "parts", "--parallel", "fsdp")[0] == 0
    assert names(tmp_path / "parts")[-1] == "0-train-00000060.dcp"
    assert loss(tmp_path / "parts") == pytest.approx(loss(tmp_path / "whole"), abs=2e-3)
    unfinish(tmp_path / "parts")
    newest = tmp_path / "parts" / "checkpoints" / "0-train-00000060.dcp"
    (part,) = newest.glob("*.safetensors")
    before = part.read_bytes()
    part.write_bytes(before[:-100])
    (newest / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "marker")))
    code, said, err = call("train", *flags, tmp_path / "parts")
    assert (code, err) == (0, "")
    assert "0-train-00000060.dcp: damaged (ValueError); going on from 0-train-000000" in said
    assert "Note: not the same bit for bit as without the interruption: parallel was fsdp, is none" in said
    assert names(tmp_path / "parts")[-1] == "0-train-00000060.pt"
    assert loss(tmp_path / "parts") == pytest.approx(loss(tmp_path / "whole"), abs=2e-3)
    assert not (tmp_path / "marker").exists()


def loss(folder: Path) -> float:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["val_loss"] for line in lines if "val_loss" in line][-1]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A way to mount a disk of a size; root only."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str) -> Path:
        mounted = shutil.which("mount") and os.geteuid() == 0
        if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place]).returncode:
            pytest.skip("a small disk can be mounted by root only")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("parallel", ["auto", "fsdp"])
@pytest.mark.parametrize(("size", "whole"), [("900k", False), ("2400k", True)])
def test_a_full_disk_is_told(
    disk: Callable[[str], Path], tmp_path: Path, call: Call, parallel: str, size: str, whole: bool
) -> None:
    out = disk(size) / "out"
    flags = ["--data", FABLES, *FLAGS, "--max-iters", 300, "--checkpoint-interval", 1, "--eval-interval", 1000]
    flags += ["--cache-dir", tmp_path / "cache", "--out-dir", out, "--parallel", parallel]
    code, _, err = call("train", *flags)
    suffix = {"auto": "pt", "fsdp": "dcp"}[parallel]
    end = "; the last checkpoint is whole" if whole else ""
    assert code == 2
    assert re.fullmatch(
        rf"train: {out}/checkpoints/0-train-\d+.{suffix}: cannot be written \(the disk is full\){end}\n", err
    )
    assert [path for path in names(out) if not path.startswith(".")] == ([names(out)[-1]] if whole else [])
    assert not list(out.rglob("*.temporary"))


def test_a_disk_that_a_checkpoint_fills_behind_the_back_of_training(
    disk: Callable[[str], Path], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = sharded._Writer.write_data

    def slowly(*args: Any) -> Any:
        try:
            return write(*args)
        except OSError:
            time.sleep(2)  # meanwhile training has a line for metrics.jsonl, and no room for it
            raise

    monkeypatch.setattr(sharded._Writer, "write_data", slowly)
    monkeypatch.setattr("mini_transformer.training.trainer.is_quick", lambda *_: False)  # no line has room already
    out = disk("900k") / "out"
    flags = ["--data", FABLES, *FLAGS, "--max-iters", 300, "--checkpoint-interval", 1, "--eval-interval", 1000]
    code, _, err = call("train", *flags, "--cache-dir", tmp_path / "cache", "--out-dir", out, "--parallel", "fsdp")
    assert code == 2
    assert re.fullmatch(rf"train: {out}/checkpoints/0-train-\d+.dcp: cannot be written \(the disk is full\)\n", err)
    assert not list(out.rglob("*.temporary"))


def test_weights_that_are_too_large_for_the_disk(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, ROOT / "train.py", "--data", FABLES, *FLAGS, "--out-dir", tmp_path]
    result = subprocess.run([*map(str, command)], preexec_fn=limit, capture_output=True, encoding="utf-8")
    assert result.returncode == 2
    assert result.stderr == f"train: {tmp_path}/model.safetensors: cannot be written (File too large)\n"


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def long(tmp_path: Path, name: str, how: list[str]) -> list[object]:
    flags = [ROOT / "train.py", "--data", FABLES, *FLAGS, "--max-iters", 120, "--eval-interval", 20, *how]
    return [*flags, "--checkpoint-interval", 5, "--cache-dir", tmp_path / "cache", "--out-dir", name]


def train_whole(tmp_path: Path, name: str, how: list[str]) -> str:
    process = spawn(long(tmp_path, name, how), tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def kill_once(tmp_path: Path, name: str, how: list[str], extra: float) -> None:
    """Start a run, and kill all its processes at some time after its first checkpoint."""
    process = spawn(long(tmp_path, name, how), tmp_path)
    while not [n for n in names(tmp_path / name) if n[0] != "."]:
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(extra)
    for pid in tree(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("how", [ONE, DDP, FSDP], ids=["one", "ddp", "fsdp"])
def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, how: list[str]) -> None:
    train_whole(tmp_path, "whole", how)
    for _ in range(2):
        kill_once(tmp_path, "killed", how, random.uniform(0, 0.5))
    assert re.search(r"Resuming from the checkpoint at train \d+", train_whole(tmp_path, "killed", how))
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.temporary"))


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(DDP, ONE), (ONE, FSDP), (FSDP, ONE), (FSDP, DDP)])
def test_a_run_goes_on_in_another_number_of_processes(tmp_path: Path, first: list[str], then: list[str]) -> None:
    train_whole(tmp_path, "whole", ONE)
    kill_once(tmp_path, "changed", first, 0.0)
    assert "Resuming from the checkpoint" in train_whole(tmp_path, "changed", then)
    assert loss(tmp_path / "changed") == pytest.approx(loss(tmp_path / "whole"), abs=2e-3)


@pytest.mark.slow
def test_three_ranks_read_what_two_have_written(tmp_path: Path) -> None:
    kill_once(tmp_path, "changed", FSDP, 0.0)
    out = train_whole(tmp_path, "changed", ["--nproc", "3", "--parallel", "fsdp"])
    assert "Resuming from the checkpoint" in out


@pytest.mark.slow
def test_a_rank_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    """Two ranks in two folders, as two machines have them."""
    for node in ("0", "1"):
        (tmp_path / node).mkdir()
    kill_once(tmp_path / "0", "out", ONE, 0.0)
    processes = []
    for node in ("0", "1"):
        group = {"RANK": node, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "GROUP_RANK": node, "GLOO_SOCKET_IFNAME": "lo"}
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
        command = [sys.executable, *map(str, long(tmp_path / node, "out", []))]
        pipe = subprocess.PIPE
        env = {**os.environ, **group, **address}
        processes.append(subprocess.Popen(command, cwd=tmp_path / node, env=env, stdout=pipe, stderr=pipe, text=True))
    errors = [process.communicate(timeout=100)[1] for process in processes]
    assert "".join(errors) == "train: --out-dir: out must be a folder that all nodes share\n"
