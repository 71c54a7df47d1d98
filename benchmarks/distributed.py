"""One process with all threads beside several with one each, DDP and FSDP: tokens/s, and the share of the exchange.

    python benchmarks/distributed.py TEXT [--processes 2] [--repeats 5] [--iters 30] [--json FILE]

It starts `train.py` and reads `metrics.jsonl`; the ways take turns. The first line of each run (10 iterations) warms up
and is left out. The share is that of the collectives in the time of rank 0, seen by torch's profiler in a run apart;
it holds waiting for the other ranks, too.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parent.parent
SHAPE = "--n-layer 4 --n-embd 128 --n-head 4 --n-experts 4 --block-size 256 --batch-size 16 --device cpu"
QUIET = "--eval-iters 1 --sample-interval 0 --overwrite"
COLLECTIVES = ("gloo:", "nccl:")


def environment(threads: int) -> dict[str, str]:
    """The environment of a run with so many threads per process."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}


def flags(given: argparse.Namespace, work: Path) -> list[str]:
    """The flags that all runs share."""
    every = ["--max-iters", str(given.iters), "--eval-interval", str(given.iters), "--cache-dir", str(work / "cache")]
    return ["--data", str(given.text), *given.shape.split(), *QUIET.split(), *every, "--out-dir", str(work / "out")]


def tokens_per_second(given: argparse.Namespace, work: Path, way: str) -> float:
    """The speed of one run, by the lines of its metrics after the first."""
    processes = 1 if way == "one process" else given.processes
    command = [sys.executable, str(ROOT / "train.py"), *flags(given, work), "--nproc", str(processes)]
    command += ["--parallel", way] if processes > 1 else []
    threads = given.processes if processes == 1 else 1
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment(threads))
    lines = [json.loads(line) for line in (work / "out" / "metrics.jsonl").read_text().splitlines()]
    return statistics.median([line["tokens_per_second"] for line in lines if "tokens_per_second" in line][1:])


def exchange_share(given: argparse.Namespace, work: Path, way: str) -> float:
    """The share of rank 0's time that is spent in collectives: this file, started by torchrun, in place of train.py."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(given.processes)]
    command += [__file__, "--profiled", str(work / "share.json"), *flags(given, work), "--parallel", way]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command, check=True, env=environment(1) | {"GLOO_SOCKET_IFNAME": "lo"}, **quiet)
    share: float = json.loads((work / "share.json").read_text())
    return share


def profiled(result: Path, words: list[str]) -> None:
    """On each rank: train with every step after the tenth under the profiler; rank 0 writes its share."""
    from mini_transformer import cli
    from mini_transformer.runtime import rank
    from mini_transformer.training.trainer import Trainer

    class Profiled(Trainer):
        seconds, spent = 0.0, 0.0

        def train_step(self) -> dict[str, float]:
            if self.progress.iteration < 10:
                return super().train_step()
            with profile(activities=[ProfilerActivity.CPU]) as seen, torch.profiler.record_function("step"):
                values = super().train_step()
            events = seen.events()
            Profiled.seconds += sum(e.time_range.elapsed_us() for e in events if e.name == "step")
            spans = sorted((e.time_range.start, e.time_range.end) for e in events if e.name.startswith(COLLECTIVES))
            end = 0.0
            for start, stop in spans:  # those at the same time count once
                Profiled.spent += max(0.0, stop - max(start, end))
                end = max(end, stop)
            return values

    import mini_transformer.training.run as run

    run.Trainer = Profiled  # type: ignore[misc]
    code = cli.run("train", words)
    if rank() == 0:
        result.write_text(json.dumps(Profiled.spent / Profiled.seconds))
    raise SystemExit(code)


def main() -> None:
    """Print the table and write the JSON."""
    if sys.argv[1:2] == ["--profiled"]:
        profiled(Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--processes", type=int, default=2, help="and threads of the one process")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--iters", type=int, default=30, help="20 or more; the first 10 are left out")
    parser.add_argument("--shape", default=SHAPE, help="flags of train.py")
    parser.add_argument("--json", type=Path, default=Path("distributed.json"))
    given = parser.parse_args()
    if given.iters < 20:
        parser.error("--iters: 20 or more; the first 10 are left out")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{machine}; {versions}; {given.shape}; {given.repeats} repeats of {given.iters} iterations\n", flush=True)
    ways = ("one process", "ddp", "fsdp")
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for _ in range(given.repeats):
            for way in ways:
                speeds[way].append(tokens_per_second(given, work, way))
        shares = {way: exchange_share(given, work, way) if way != "one process" else 0.0 for way in ways}
    base = statistics.median(speeds["one process"])
    print("| | tokens/s, median (range) | times one process | share of the exchange |\n|---|---|---|---|")
    for way, values in speeds.items():
        middle, spread = statistics.median(values), f"{min(values):,.0f} to {max(values):,.0f}"
        name = f"{way}, {given.processes} {'threads' if way == 'one process' else 'processes'}"
        print(f"| {name} | {middle:,.0f} ({spread}) | {middle / base:.2f} | {shares[way]:.0%} |")
    result = {"machine": machine, "versions": versions, "shape": given.shape, "iters": given.iters}
    given.json.write_text(json.dumps({**result, "tokens_per_second": speeds, "exchange": shares}, indent=2) + "\n")


if __name__ == "__main__":
    main()
