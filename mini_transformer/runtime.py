"""Which device computes, and in which precision."""

from contextlib import contextmanager

import torch

from mini_transformer.errors import UserError


def pick_device(name: str, gpus: str | None = None, flag: str = "--gpus") -> torch.device:
    """The device that `--device` and `--gpus` (or another flag that names a GPU) mean. Raises `UserError` without it.

    `auto` takes CUDA, then MPS, then the CPU. Several ids are the place of distributed training, still to come.
    """
    if gpus is not None:
        return _gpu(name, gpus, flag)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no NVIDIA GPU is there for this PyTorch; take --device cpu (or auto)")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: no Apple GPU is there for this PyTorch; take --device cpu (or auto)")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def _gpu(name: str, gpus: str, flag: str) -> torch.device:
    if name not in ("auto", "cuda"):
        raise UserError(f"{flag} {gpus}: goes with --device cuda, not with --device {name}")
    count = torch.cuda.device_count()
    if gpus == "all" and count == 1:
        gpus = "0"
    if gpus == "all" or "," in gpus:
        raise UserError(f"{flag} {gpus}: training on several GPUs is not there yet; name one id, such as {flag} 0")
    if not gpus.isdecimal():
        raise UserError(f"{flag} {gpus}: expected the id of a GPU, such as {flag} 0")
    if int(gpus) >= count:
        there = "there is none" if count == 0 else f"there are {count}, ids 0 to {count - 1}"
        raise UserError(f"{flag} {gpus}: there is no GPU of that id ({there})")
    return torch.device("cuda", int(gpus))


def describe_device(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return f"cuda:{device.index} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type in which matrices are multiplied. `auto`: bfloat16 on GPUs that have it in hardware, else float32."""
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def log(line: str) -> None:
    """Print a line."""
    print(line, flush=True)


@contextmanager
def deterministic_algorithms(device):
    from torch.utils import deterministic

    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        deterministic.fill_uninitialized_memory = before[1]
