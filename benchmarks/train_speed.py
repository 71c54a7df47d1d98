"""Steps of training beside peers, in one run: tokens/s, the share of the machine's products, and peak memory.

    python benchmarks/train_speed.py [--nanogpt CHECKOUT] [--shapes 4x128,4x192,24x512] [--repeats 5] [--json FILE]
    python benchmarks/train_speed.py --memory [--nanogpt CHECKOUT] [--shapes 24x512]
    python benchmarks/train_speed.py --device cuda [--nanogpt CHECKOUT] [--shapes 4x192,24x512]

All ways have as many active parameters, the same vocabulary, batch and optimizer (AdamW, fused; gradients clipped), no
dropout, and take turns in one process: in float32 and, where the CPU has such products, in bfloat16, which ours takes
by itself and the others by autocast (nanoGPT's own script stays with float32 on a CPU). Ours goes through the passes
of the trainer; nanoGPT is shown compiled, too, where there is a C++ compiler. `transformers` comes with
the dev extra; nanoGPT is a checkout of github.com/karpathy/nanoGPT, of which model.py is imported. With --memory each
way makes two steps of a batch of 64 in a process of its own, whose largest resident size is shown.

With --device cuda all compute in bfloat16 (autocast), and the peak of PyTorch's allocations is shown beside the speed;
ours and nanoGPT are shown as they are and compiled by torch.compile, ours also recorded as a CUDA graph.
"""

import argparse
import gc
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peers import BLOCK, SHAPES, VOCABULARY, Loss, config_of_ours, gpt_oss, nanogpt, ours
from torch import nn

from mini_transformer.config import OptimConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.runtime import pick_precision
from mini_transformer.training.acceleration import accelerate
from mini_transformer.training.losses import cross_entropy_sum
from mini_transformer.training.optimizer import make_optimizer, update_router_bias
from mini_transformer.training.passes import Passes
from mini_transformer.training.plan import flops_per_token
from mini_transformer.training.speed import product_speed

GPU_BATCH = 64


def precisions() -> dict[str, torch.dtype]:
    """The types of products on this CPU, by name."""
    types = dict.fromkeys((pick_precision("auto", torch.device("cpu"), 128), torch.float32))
    return {str(t).removeprefix("torch."): t for t in types}


def ways(given: argparse.Namespace) -> dict[str, Callable[[str], tuple[nn.Module, Loss]]]:
    """All that take part, by name."""
    found: dict[str, Callable[[str], tuple[nn.Module, Loss]]] = {
        "ours, 4 experts, 2 per token": lambda shape: ours(shape, 4),
        "ours, dense": lambda shape: ours(shape, 1),
    }
    if not given.no_transformers:
        found["transformers GptOss, eager experts"] = lambda shape: gpt_oss(shape, "eager")
        found["transformers GptOss, grouped_mm experts"] = lambda shape: gpt_oss(shape, "grouped_mm")
    if given.nanogpt:
        found["nanoGPT"] = lambda shape: nanogpt(shape, given.nanogpt)
        if shutil.which("g++"):
            found["nanoGPT, compiled"] = lambda shape: compiled(*nanogpt(shape, given.nanogpt))
    return found


def compiled(model: nn.Module, loss: Loss) -> tuple[nn.Module, Loss]:
    """The same, compiled by torch.compile."""
    return model, torch.compile(loss)


def ways_on_a_gpu(given: argparse.Namespace, shape: str) -> dict[str, Callable[[], Callable[[], None]]]:
    """All that take part on a GPU, by name; each makes its step."""
    found: dict[str, Callable[[], Callable[[], None]]] = {}
    for experts, kind in ((4, "4 experts"), (1, "dense")):
        for compile, graphs in (("off", False), ("off", True), ("on", True)):
            name = f"ours, {kind}{', compiled' * (compile == 'on')}{', CUDA graph' * graphs}"
            if experts == 4 or graphs:
                more = (compile, graphs)
                found[name] = partial(lambda e, more: gpu_step(*ours(shape, e), more), experts, more)
    if not given.no_transformers:
        found["transformers GptOss, grouped_mm experts"] = lambda: gpu_step(*gpt_oss(shape, "grouped_mm"))
    if given.nanogpt:
        found["nanoGPT"] = lambda: gpu_step(*nanogpt(shape, given.nanogpt))
        found["nanoGPT, compiled"] = lambda: gpu_step(*nanogpt(shape, given.nanogpt), compiled=True)
    return found


def gpu_step(
    model: nn.Module, loss: Loss, more: tuple[str, bool] | None = None, compiled: bool = False
) -> Callable[[], None]:
    """One step of the optimizer on random tokens, in bfloat16; `more`: how ours is compiled, and whether recorded."""
    model.cuda().train()
    x, y = torch.randint(VOCABULARY, (2, GPU_BATCH, BLOCK), device="cuda")
    optim = OptimConfig()
    if isinstance(model, Decoder):
        assert more is not None
        optimizer: torch.optim.Optimizer = make_optimizer(model, optim)
        passes = Passes(model, model, torch.bfloat16, cross_entropy_sum)
        accelerate(passes, [GPU_BATCH], BLOCK, more[0], 0)
        if not more[1]:
            passes.forget()
    else:
        optimizer = torch.optim.AdamW(model.parameters(), betas=(optim.beta1, optim.beta2), fused=True)
        call = torch.compile(loss) if compiled else loss
    for group in optimizer.param_groups:
        group["lr"] = 1e-4

    def step() -> None:
        if isinstance(model, Decoder):
            passes.zero_grad()
            passes.backward((0,), range(GPU_BATCH), x, y, y.numel(), True)
        else:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16):
                value = call(x, y)
            value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip)
        optimizer.step()
        if isinstance(model, Decoder):
            update_router_bias(model, optim.balance_rate)

    return step


def compare_on_a_gpu(given: argparse.Namespace, shape: str) -> dict[str, list[float]]:
    """Tokens/s and memory of each way, one after the other; prints the table of a shape."""
    print(f"| {shape}, batch {GPU_BATCH} | tokens/s, median (range) | peak, GB | seconds to begin |\n|---|---|---|---|")
    speeds: dict[str, list[float]] = {}
    for name, make in ways_on_a_gpu(given, shape).items():
        torch.manual_seed(0)
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        try:
            step = make()
            for _ in range(3):
                step()
            torch.cuda.synchronize()
            seconds, speeds[name] = time.perf_counter() - begun, []
            for _ in range(given.repeats):
                started = time.perf_counter()
                for _ in range(10):
                    step()
                torch.cuda.synchronize()
                speeds[name].append(10 * GPU_BATCH * BLOCK / (time.perf_counter() - started))
        except Exception as error:
            print(f"| {name} | {type(error).__name__}: {str(error).splitlines()[0]} | | |", flush=True)
            continue
        values, peak = speeds[name], torch.cuda.max_memory_allocated() / 1e9
        speed = f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"
        print(f"| {name} | {speed} | {peak:.2f} | {seconds:.0f} |", flush=True)
        del step
    return speeds


def make_steps(model: nn.Module, loss: Loss, batch: int) -> dict[str, Callable[[], None]]:
    """One step of the optimizer on random tokens, by the type of products."""
    optim = OptimConfig()
    if isinstance(model, Decoder):
        optimizer: torch.optim.Optimizer = make_optimizer(model, optim)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), betas=(optim.beta1, optim.beta2), fused=True)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    x, y = torch.randint(VOCABULARY, (2, batch, BLOCK))
    model.train()

    def step(precision: torch.dtype, passes: Passes | None) -> None:
        optimizer.zero_grad(set_to_none=True)
        if passes:
            passes.backward((0,), range(batch), x, y, y.numel(), True)
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
                value = loss(x, y)
            value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip)
        optimizer.step()
        if isinstance(model, Decoder):
            update_router_bias(model, optim.balance_rate)

    steps = {}
    for name, precision in precisions().items():
        passes = Passes(model, model, precision, cross_entropy_sum) if isinstance(model, Decoder) else None
        steps[name] = partial(step, precision, passes)
    return steps


def compare(given: argparse.Namespace, shape: str) -> dict[str, list[float]]:
    """Tokens/s of each way, in turns; prints the table of a shape."""
    layers, width, _, batch = SHAPES[shape]
    torch.manual_seed(0)
    steps = {}
    for name, make in ways(given).items():
        steps |= {f"{name}, {kind}": step for kind, step in make_steps(*make(shape), batch).items()}
    per_turn = max(1, 5 * 128 * 4 // (width * layers))
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(given.repeats + 1):  # the first one warms up
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(per_turn):
                step()
            if turn:
                speeds[name].append(per_turn * batch * BLOCK / (time.perf_counter() - started))
    base = statistics.median(speeds.get("nanoGPT, float32") or speeds["ours, 4 experts, 2 per token, float32"])
    print(f"| {shape}, batch {batch} | tokens/s, median (range) | times {'nanoGPT' if given.nanogpt else 'ours'} |")
    print("|---|---|---|")
    for name, values in speeds.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:,.0f} ({min(values):,.0f} to {max(values):,.0f}) | {middle / base:.2f} |")
    cost = flops_per_token(config_of_ours(shape, 4))
    for name, precision in precisions().items():
        limit = product_speed(torch.device("cpu"), precision) / cost
        print(f"| what the products of ours alone would allow, {name} | {limit:,.0f} | {limit / base:.2f} |")
    print(flush=True)
    return speeds


def peak_memory(given: argparse.Namespace, shape: str) -> dict[str, float]:
    """GB at the peak of two steps of 64 rows, each way in a process of its own; prints the table."""
    print(f"| {shape}, batch 64 | peak memory, GB |\n|---|---|")
    peaks = {}
    for name in (f"{name}, {kind}" for name in ways(given) for kind in precisions()):
        command = [sys.executable, __file__, "--memory", "--shapes", shape, "--one", name]
        command += ["--nanogpt", str(given.nanogpt)] if given.nanogpt else []
        result = subprocess.run(command, capture_output=True, text=True)
        peaks[name] = float(result.stdout) if result.returncode == 0 else float("nan")
        print(f"| {name} | {peaks[name]:.2f} |", flush=True)
    print()
    return peaks


def one_peak(given: argparse.Namespace, shape: str) -> None:
    """In the process of its own: print the peak in GB, less what the process has before."""
    name, _, kind = given.one.rpartition(", ")
    step = make_steps(*ways(given)[name](shape), 64)[kind]
    for _ in range(2):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


def main() -> None:
    """Print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--shapes", default="", help="separated by commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of speed")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    shapes = given.shapes.split(",") if given.shapes else ["24x512"] if given.memory else list(SHAPES)
    if given.one:
        return one_peak(given, shapes[0])
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    if given.device == "cuda":
        machine = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, {machine}"
    print(f"{machine}; {versions}; block {BLOCK}, vocabulary {VOCABULARY}; {given.repeats} repeats\n", flush=True)
    kinds = {"cuda": compare_on_a_gpu, "cpu": peak_memory if given.memory else compare}
    results = {shape: kinds[given.device](given, shape) for shape in shapes}
    if given.json:
        kind = "peak_gb" if given.memory else "tokens_per_second"
        given.json.write_text(json.dumps({"machine": machine, "versions": versions, kind: results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
