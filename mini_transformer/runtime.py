"""Where a process runs: device, precision, repeatability, and its lines on the terminal.

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


def log(line: str) -> None:
    """Print a line, from the first process of a run only. A closed pipe (`train ... | head`) is no error."""
    if os.environ.get("RANK", "0") != "0":  # of several processes
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
        return _pick_gpu(device, gpus, setting)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(kind for kind in there if there[kind])
    if not there[device]:
        maker = "NVIDIA" if device == "cuda" else "Apple"
        raise UserError(f"`device` {device}: no {maker} GPU is there for this PyTorch; take `device` cpu (or auto)")
    return torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)


def _pick_gpu(device: str, gpus: str, setting: str) -> "torch.device":
    import torch

    if device not in ("auto", "cuda"):
        raise UserError(f"`{setting}` {gpus}: goes with `device` cuda, not with `device` {device}")
    count = torch.cuda.device_count()
    gpus = "0" if gpus == "all" and count == 1 else gpus
    if gpus == "all" or "," in gpus:
        raise UserError(f"`{setting}` {gpus}: training on several GPUs is not there yet; name one id, such as 0")
    if not gpus.isdecimal():
        raise UserError(f"`{setting}` {gpus}: expected the id of a GPU, such as 0")
    if int(gpus) >= count:
        there = "there is none" if count == 0 else f"there are {count}, ids 0 to {count - 1}"
        raise UserError(f"`{setting}` {gpus}: there is no GPU of that id ({there})")
    return torch.device("cuda", int(gpus))


def describe_device(device: "torch.device") -> str:
    """The device in words."""
    import torch

    if device.type == "cuda":
        return f"cuda:{device.index} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def pick_precision(precision: str, device: "torch.device") -> "torch.dtype":
    """The type in which matrices are multiplied. `auto`: bfloat16 on GPUs that have it in hardware, else float32."""
    import torch

    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
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
