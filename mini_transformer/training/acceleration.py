"""What makes the passes of a run on a GPU fast: compiled blocks and CUDA graphs, each proved at the start.

Either is tried on random tokens against the plain pass, its loss and its gradients. Where it fails or finds something
else, or not the same twice, the run goes on without it and says why. Gradients of many layers are far apart by rounding
alone, since a logit of a router that is rounded otherwise chooses another expert: how far, the plain pass tells.
"""

import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from mini_transformer.model.decoder import plain_block, plain_head
from mini_transformer.runtime import log
from mini_transformer.training.distributed import any_rank, from_rank_zero
from mini_transformer.training.passes import Passes
from mini_transformer.training.proofs import prove_kernels

LOSS, GRADIENTS = 0.01, 0.05  # how far a fast pass may be from the plain one, relative; bfloat16 is that coarse
ROUNDING = 1.5  # so many times as far as rounding moves the plain one's gradients, if that is more
REPEATS = 1e-3  # how far it may be from itself; what reads memory that nobody wrote is farther
WORTH_COMPILING = 180.0  # seconds of plain steps that win back the minute which compiling may take

Found = tuple[float, list[Tensor]]  # a loss and gradients


def accelerate(passes: Passes, rows: Sequence[int], block_size: int, compile: str, steps: int) -> None:
    """Compile the blocks if `compile` is on, or auto and worth it for so many `steps` of passes; record CUDA graphs.

    `rows`: the numbers of rows that micro-batches have. All ranks call it alike.
    """
    if passes.device.type != "cuda":
        if compile == "on":
            log("Not compiled: only a GPU gains by it; on a CPU the passes of a block are fused by hand")
        return
    if passes.precision is torch.bfloat16:
        prove_kernels(passes.device)
    if isinstance(passes.model, FSDPModule):  # whose layers are whole for a moment only
        if compile == "on":
            log("Not compiled: not under FSDP")
        return
    vocabulary = passes.model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    ids_bt = torch.randint(vocabulary, (max(rows), block_size), generator=generator).to(passes.device)
    plain, seconds = measure(passes, ids_bt)
    bound = max(GRADIENTS, ROUNDING * moved_by_rounding(passes, ids_bt, plain))
    pays = seconds * steps > WORTH_COMPILING and not missing_compiler()
    if from_rank_zero(compile == "on" or (compile == "auto" and pays)):
        started = time.monotonic()
        # one after the other: either may be right alone and wrong beside the other (4 x 256 on an H100, torch 2.11)
        for part, what, way in (("run_block", "blocks", plain_block), ("run_head", "loss", plain_head)):
            setattr(passes.model, part, torch.compile(way, dynamic=False))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what the compiler decides
                good = proved(f"compiled: the {what}", lambda: twice(passes, ids_bt), plain, bound)
            if not good:
                setattr(passes.model, part, way)
                break
            passes.compiled = True
        if passes.compiled:
            log(f"Compiled in {time.monotonic() - started:.0f} s")
    # ranks exchange gradients in the middle of a pass, and teachers change with each
    steady = passes.parallel is passes.model and len(passes.losses) == 1
    record = partial(graphed, passes, ids_bt, sorted(set(rows)))
    if steady and not proved("recorded as CUDA graphs", record, plain, bound):
        passes.graphs.clear()
    passes.zero_grad()


def missing_compiler() -> str | None:
    """What compiling for a GPU needs and this machine lacks."""
    if find_spec("triton") is None:
        return "Triton"
    c_compilers = (os.environ.get("CC"), "gcc", "cc", "clang")
    return None if any(name and shutil.which(name) for name in c_compilers) else "a C compiler"


def measure(passes: Passes, ids_bt: Tensor) -> tuple[Found, float]:
    """Loss and gradients of a batch on this rank alone, and the seconds that a pass takes."""
    alone = passes.parallel is passes.model
    for _ in range(2):  # the first one warms up
        passes.zero_grad()
        if passes.device.type == "cuda":
            torch.cuda.synchronize(passes.device)
        started = time.monotonic()
        loss = passes.backward((0,), range(len(ids_bt)), ids_bt, ids_bt, ids_bt.numel(), alone).item()
        seconds = time.monotonic() - started
    gradients = [p.grad.detach().clone() for p in passes.parameters if p.grad is not None]
    return (loss, gradients), seconds


def twice(passes: Passes, ids_bt: Tensor) -> Found:
    """The loss and the gradients of a fast way. Raises `RuntimeError` if they are not the same once more."""
    first, again = measure(passes, ids_bt)[0], measure(passes, ids_bt)[0]
    if (far := distance(again[1], first[1])) > REPEATS:
        raise RuntimeError(f"gradients of the same batch are {far:.3g} apart")
    return again


def moved_by_rounding(passes: Passes, ids_bt: Tensor, plain: Found) -> float:
    """How far the plain gradients move if the weights of all norms do, by what the precision rounds away."""
    norms = [p for name, p in passes.model.named_parameters() if "norm" in name]
    kept, generator = [p.detach().clone() for p in norms], torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in norms:
            noise = torch.randn(p.shape, generator=generator).to(p.device)
            p.mul_(1 + torch.finfo(passes.precision).eps / 2 * noise)
    moved = measure(passes, ids_bt)[0]
    with torch.no_grad():
        for p, before in zip(norms, kept, strict=True):
            p.copy_(before)
    return distance(moved[1], plain[1])


def distance(gradients: Sequence[Tensor], plain: Sequence[Tensor]) -> float:
    """How far gradients are from others, relative to these."""
    errors = [a - b for a, b in zip(gradients, plain, strict=True)]
    return (torch.nn.utils.get_total_norm(errors) / torch.nn.utils.get_total_norm(plain)).item()


def graphed(passes: Passes, ids_bt: Tensor, rows: Sequence[int]) -> Found:
    """Record the graphs of so many rows; loss and gradients by the largest."""
    for count in rows:
        passes.record(ids_bt[:count])
    return twice(passes, ids_bt)


def proved(what: str, fast: Callable[[], Found], plain: Found, bound: float = GRADIENTS) -> bool:
    """Whether a fast way finds what the plain one did, gradients to `bound`, on all ranks; says so if not."""
    reason = "another process cannot"
    try:
        loss, gradients = fast()
        far = distance(gradients, plain[1])
        good = abs(loss - plain[0]) <= LOSS * abs(plain[0]) and far <= bound
        if not good:
            reason = f"loss {loss:.4f} instead of {plain[0]:.4f}, gradients {far:.3f} apart"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of compilers and drivers that we have not seen; all works without
        good, reason = False, f"{type(error).__name__}: {error}".splitlines()[0][:200]
    if not any_rank(not good):
        return True
    log(f"Not {what}; the run goes on without ({reason})")
    return False
