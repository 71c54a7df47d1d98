"""Several processes train as one. Real processes on gloo; those that take long are in `test_faults`."""

import json
import re
import signal
import sys
from pathlib import Path

import pytest
import torch

from mini_transformer.config import ModelConfig
from mini_transformer.data.stream import TokenDocuments, TokenStream, validation_batches
from mini_transformer.model.decoder import Decoder
from tests.training.processes import TORCHRUN, losses, processes, run, start, wait_for, weights

MICRO_BATCHES = ["--micro-batch-size", 1, "--eval-iters", 4]  # 7 rows: 3 and 4, in three micro-batches each
SHAPES = {
    "experts": ["--dropout", 0.1, *MICRO_BATCHES],
    "muon": ["--optimizer", "muon", "--lr", 2e-3, *MICRO_BATCHES],
    "dense": ["--dropout", 0.0, "--n-experts", 1, "--replay", 0.0],
}


@pytest.mark.parametrize(
    ("parallel", "shape"),
    [
        ("ddp", "experts"),
        ("fsdp", "muon"),
        pytest.param("fsdp", "experts", marks=pytest.mark.slow),
        pytest.param("ddp", "dense", marks=pytest.mark.slow),
        pytest.param("fsdp", "dense", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(tmp_path: Path, parallel: str, shape: str) -> None:
    flags = ["--max-iters", 10, "--eval-interval", 5, *SHAPES[shape]]
    assert run(tmp_path, *flags, "--out-dir", "one")[0] == 0
    code, out, err = run(tmp_path, *flags, "--out-dir", "two", "--nproc", 2, "--parallel", parallel)
    assert (code, err) == (0, "")
    assert out.count("train 10/10") == 1
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-3)
    assert (tmp_path / "two" / "generated_text.txt").is_file()
    record = json.loads((tmp_path / "two" / "run.json").read_text())["environment"]
    assert (record["processes"], record["parallel"]) == (2, parallel)


@pytest.mark.slow
def test_torchrun_works_as_it_stands_and_a_stopped_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    flags = ["--max-iters", 40, "--eval-interval", 20, "--checkpoint-interval", 5]
    assert run(tmp_path, *flags, "--out-dir", "whole", "--nproc", 2)[0] == 0
    process = start(tmp_path, *flags, "--out-dir", "stopped", launcher=TORCHRUN)
    wait_for(tmp_path / "stopped" / "checkpoints", process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert out.count("Stopped; the state is saved in stopped") == 1
    assert not processes("stopped")
    code, out, _ = run(tmp_path, *flags, "--out-dir", "stopped", "--nproc", 2)
    assert code == 0
    assert "Resuming from the checkpoint" in out
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_an_error_is_said_once_and_ends_all_processes(tmp_path: Path) -> None:
    code, _, err = run(tmp_path, "--batch-size", 1, "--out-dir", tmp_path / "out", "--nproc", 2)
    assert (code, err) == (2, "train: --batch-size 1: is less than the 2 processes\n")
    assert not processes(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ctrl_c_saves_on_all_processes(tmp_path: Path) -> None:
    flags = ["--max-iters", 100_000, "--checkpoint-interval", 5]
    process = start(tmp_path, *flags, "--out-dir", tmp_path / "out", "--nproc", 2)
    wait_for(tmp_path / "out" / "checkpoints", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert len(re.findall("Stopped; the state is saved", out)) == 1
    assert not processes(tmp_path / "out")


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


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_one_two_and_four_processes_agree_over_200_steps(tmp_path: Path, dropout: float) -> None:
    flags = ["--max-iters", 200, "--eval-interval", 20, "--batch-size", 8, "--dropout", dropout]
    assert run(tmp_path, *flags, "--out-dir", "1")[0] == 0
    reference = losses(tmp_path / "1")
    for number, parallel in ((2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp")):
        out = tmp_path / f"{number}-{parallel}"
        code, _, err = run(tmp_path, *flags, "--out-dir", out, "--nproc", number, "--parallel", parallel)
        assert code == 0, err
        furthest = max(abs(one - other) for one, other in zip(losses(out), reference, strict=True))
        print(f"\ndropout {dropout}, {number} processes, {parallel}: at most {furthest:.6f} nats from one process")
        assert furthest < 2e-3


@pytest.mark.gpu
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_each_gpu_has_a_process(tmp_path: Path, parallel: str) -> None:
    """NCCL with as many ranks as there are GPUs, also with one; the losses are those of one plain process."""
    count = str(torch.cuda.device_count())
    flags = ["--device", "cuda", "--precision", "float32", "--batch-size", 8, "--max-iters", 20, "--eval-interval", 5]
    assert run(tmp_path, *flags, "--gpus", 0, "--out-dir", "one")[0] == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
    code, _, err = run(tmp_path, *flags, "--out-dir", "all", "--parallel", parallel, launcher=launcher)
    assert code == 0, err
    assert losses(tmp_path / "all") == pytest.approx(losses(tmp_path / "one"), abs=2e-3)
