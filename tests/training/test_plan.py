"""The formulas of a plan against what torch's profiler sees, and against what goes between two real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from mini_transformer import cli
from mini_transformer.config import ModelConfig, OptimConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.dropout import seed_dropout
from mini_transformer.training import announcement
from mini_transformer.training.announcement import amount
from mini_transformer.training.losses import cross_entropy_sum
from mini_transformer.training.optimizer import make_optimizer
from mini_transformer.training.parallel import parallelise, snapshot
from mini_transformer.training.plan import communication, memory, meta_model, shard_size
from tests.conftest import FABLES, ROOT, TINY
from tests.training import exchange

DENSE, EXPERTS = 1, 4
SMALL, LARGE = 100, 8192


def shape(layers: int, width: int, experts: int, vocabulary: int) -> ModelConfig:
    more = {"n_head": width // 32, "n_experts": experts, "block_size": 256, "dropout": 0.1}
    return ModelConfig(n_layer=layers, n_embd=width, **more).resolve(vocabulary)


def allocations(seen: profile) -> list[int]:
    """Bytes that were taken (and given back, below 0), in the order of time."""
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]


def peak_of_training(config: ModelConfig, rows: int, precision: torch.dtype) -> int:
    """The largest sum of all tensors of a process that trains, in bytes, as torch's profiler counts them."""
    seed = range(rows)
    torch.manual_seed(0)  # of the router, which decides how many rows each expert has
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        model = Decoder(config)
        optimizer = make_optimizer(model, OptimConfig())
        blocks = torch.randint(config.vocab_size, (rows, config.block_size))
        for step in range(2):
            for _ in range(2):  # micro-batches
                seed_dropout(model, (0,), seed)
                with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
                    loss = cross_entropy_sum(model, blocks, blocks)[0]
                loss.backward()
            optimizer.step()
            best = snapshot(model)
            if step == 0:
                optimizer.zero_grad(set_to_none=True)
    assert best
    size = peak = 0
    for taken in allocations(seen):
        size += taken
        peak = max(peak, size)
    return peak


@pytest.mark.parametrize(
    ("layers", "width", "experts", "vocabulary", "rows"),
    [
        (4, 128, DENSE, SMALL, 4),
        pytest.param(4, 128, EXPERTS, LARGE, 4, marks=pytest.mark.slow),
        (6, 192, EXPERTS, SMALL, 4),
        pytest.param(6, 192, DENSE, LARGE, 16, marks=pytest.mark.slow),
        pytest.param(4, 128, EXPERTS, SMALL, 16, marks=pytest.mark.slow),
    ],
)
def test_memory_is_what_the_profiler_counts(layers: int, width: int, experts: int, vocabulary: int, rows: int) -> None:
    config = shape(layers, width, experts, vocabulary)
    assert memory(config, rows, 2).total == pytest.approx(peak_of_training(config, rows, torch.float32), rel=0.05)


def test_memory_where_the_weights_are_most_of_it() -> None:
    config = ModelConfig(n_layer=2, n_embd=256, n_head=4, block_size=16, n_experts=8, dropout=0.0).resolve(300)
    assert memory(config, 2, 2).total == pytest.approx(peak_of_training(config, 2, torch.float32), rel=0.1)


def test_memory_in_bfloat16() -> None:
    config = shape(2, 128, EXPERTS, SMALL)
    found = peak_of_training(config, 2, torch.bfloat16)
    assert memory(config, 2, 2, precision=torch.bfloat16).total == pytest.approx(found, rel=0.1)


def between_two(parallel: str, micro_batches: int) -> dict[str, int]:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.training.exchange", parallel, str(micro_batches)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back at once
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "micro_batches"), [("ddp", 2), ("fsdp", 2), pytest.param("fsdp", 1, marks=pytest.mark.slow)]
)
def test_memory_and_bytes_between_two_processes(parallel: str, micro_batches: int) -> None:
    found = between_two(parallel, micro_batches)
    # by rings, adding up sends each part twice, gathering and scattering once
    sent = found["all_reduce"] + (found["all_gather"] + found["reduce_scatter"]) / 2
    assert sent == communication(exchange.SHAPE, 2, parallel, micro_batches)
    need = memory(exchange.SHAPE, exchange.ROWS, micro_batches, 2, parallel)
    assert need.total - need.best_weights == pytest.approx(found["peak"], rel=0.05)


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_each_rank_stores_its_part_whatever_the_number_of_experts(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(n_layer=2, n_embd=128, n_head=2, block_size=16, n_experts=4, dropout=0.0).resolve(320)
    whole = sum(p.numel() for p in meta_model(config).parameters())
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)  # torch's own, for this purpose
    try:
        model = Decoder(config)
        parallelise(model, "fsdp")
        stored = sum(p.to_local().numel() for p in model.parameters())
    finally:
        dist.destroy_process_group()
    assert stored == shard_size(meta_model(config), ranks) <= 1.02 * whole / ranks + 100


def test_the_plan_is_printed_and_measuring_the_time_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--data", str(FABLES), *TINY, "--max-iters", "6", "--micro-batch-size", "3", "--cache-dir", str(tmp_path)]
    assert cli.run("train", [*flags, "--out-dir", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "Plan, train: 6 iterations of 128 tokens: 768 tokens, 0.005 epochs" in out
    assert "Memory: about " in out
    assert "Time: " not in out
    monkeypatch.setattr(announcement, "WORTH_TIMING", 0.0)
    monkeypatch.setattr(announcement, "LONG", 0.0)
    assert cli.run("train", [*flags, "--out-dir", str(tmp_path / "b")]) == 0
    out, err = capsys.readouterr()
    assert "Time: about " in out
    assert "Warning: this run will take about" in err
    command = f"python train.py --data {FABLES} --recipe fables-10min --out-dir {tmp_path / 'b'}"
    assert f"{command}; a French text learns more with --recipe finetune" in err
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_amounts() -> None:
    assert [amount(n) for n in (4096, 8_192_000, 1.3e9)] == ["4,096 tokens", "8.2 million tokens", "1.3 billion tokens"]
