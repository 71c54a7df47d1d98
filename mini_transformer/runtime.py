"""Where a process runs: rank, device, precision, repeatability, and its lines on the terminal.

torch is imported where it is used: `log` is for commands that do without it, too.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mini_transformer.errors import UserError

if TYPE_CHECKING:
    import torch

WIDE = 128  # from this width on bfloat16 pays on a CPU


def is_launched() -> bool:
    """Whether the process is one of a run's ranks, started by our launcher or by torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """The number of this process among those of the run."""
    return int(os.environ["RANK"]) if is_launched() else 0


def world_size() -> int:
    """The number of processes of the run."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def local_rank() -> int:
    """The number of this process among those of its node."""
    return int(os.environ.get("LOCAL_RANK", 0)) if is_launched() else 0


def node() -> int:
    """The number of this process's node."""
    return int(os.environ.get("GROUP_RANK", 0))


def log(line: str) -> None:
    """Print a line, from the first process of a run only. A closed pipe (`train ... | head`) is no error."""
    if rank():
        return
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def pick_device(device: str, gpus: str | None = None, setting: str = "gpus") -> "torch.device":
    """The device that the settings `device` and `gpus` mean (`setting`: the name of the latter).

    `auto` takes CUDA, then MPS, then the CPU. Raises `UserError` if the device is not available.
    """
    import torch

    if gpus is not None:
        ids = gpu_ids(device, gpus, setting)
        if local_rank() >= len(ids):
            raise UserError(f"`{setting}` {gpus}: {len(ids)} for process number {local_rank() + 1} of this machine")
        return torch.device("cuda", ids[local_rank()])
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(kind for kind in there if there[kind])
    if device not in there:
        raise UserError(f"`device`: {device!r} is none of auto, cpu, cuda, mps")
    if not there[device]:
        maker = "NVIDIA" if device == "cuda" else "Apple"
        raise UserError(f"`device` {device}: no {maker} GPU is there for this PyTorch; take `device` cpu (or auto)")
    if device == "mps" and world_size() > 1:
        raise UserError(f"`device` mps: is one for one process, not for {world_size()}; take `device` cpu")
    if device == "cuda" and local_rank() >= (count := torch.cuda.device_count()):
        raise UserError(f"`device` cuda: there are {count} GPUs for process number {local_rank() + 1} of this machine")
    return torch.device("cuda", local_rank()) if device == "cuda" else torch.device(device)


def gpu_ids(device: str, gpus: str, setting: str = "gpus") -> list[int]:
    """The ids in `0,1` or `all`. Raises `UserError` where there is no such GPU."""
    import torch

    if device not in ("auto", "cuda"):
        raise UserError(f"`{setting}` {gpus}: goes with `device` cuda, not with `device` {device}")
    count = torch.cuda.device_count()
    if gpus == "all" and not count:
        raise UserError(f"`{setting}` all: there is no NVIDIA GPU for this PyTorch")
    words = list(map(str, range(count))) if gpus == "all" else gpus.split(",")
    if not all(word.strip().isdecimal() and len(word) < 9 for word in words):
        raise UserError(f"`{setting}` {gpus}: expected the ids of GPUs, such as 0 or 0,1, or all")
    ids = [int(word) for word in words]
    if len(set(ids)) < len(ids):
        raise UserError(f"`{setting}` {gpus}: an id is there twice")
    if wrong := [i for i in ids if i >= count]:
        there = "there is none" if count == 0 else f"there are {count}, ids 0 to {count - 1}"
        hint = f"; for {count} GPUs: `{setting}` all" if ids == [count] and count > 1 else ""
        raise UserError(f"`{setting}` {gpus}: there is no GPU of id {wrong[0]} ({there}){hint}")
    return ids


def describe_device(device: "torch.device") -> str:
    """The device in words."""
    import torch

    if device.type == "cuda":
        return f"cuda:{device.index} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def pick_precision(precision: str, device: "torch.device", width: int) -> "torch.dtype":
    """The type in which a model of this width multiplies matrices.

    `auto`: bfloat16 where the device has such products, else float32; on a CPU float32 for narrow models, too, which
    have little to gain, so that their losses are the same on any number of processes.
    """
    import torch

    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:  # emulated products are slower than those of float32
            has_products = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            fast = device.type == "cpu" and width >= WIDE and has_products
        precision = "bfloat16" if fast else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


@contextmanager
def deterministic_algorithms(device: "torch.device") -> Iterator[None]:
    """Repeatable algorithms on the CPU, the device on which runs are equal bit for bit."""
    import torch
    from torch.utils import deterministic

    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # a debugging aid that costs 4% of the time
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        deterministic.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]
