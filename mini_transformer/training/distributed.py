"""Several processes (ranks) that train one model: how they meet, and the points at which they must agree.

Who a process is comes from the environment that `torchrun` and our own launcher set. One process alone agrees with
itself: nothing is exchanged then. What is decided by these functions is decided by all ranks together, so none leaves a
step alone. Control values are CPU tensors and go over gloo; NCCL carries the gradients of GPUs.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from mini_transformer.errors import UserError
from mini_transformer.runtime import is_launched, local_rank, node, rank, world_size

POLL = 0.2  # seconds between looks at the store
LAUNCHER = "MINI_TRANSFORMER_LAUNCHER"  # what our own launcher tells its ranks: it may be gone before they look
_PARENT = int(os.environ.get(LAUNCHER, 0)) or os.getppid()
_store: Any = None  # a torch.distributed.Store
_group: Any = None  # kept for good: DDP, as the last to let go of it, might wait for a thread that waits for Python


def join() -> None:
    """Meet the other ranks in the store that the launcher names; the process group comes later, see `process_group`."""
    global _store
    if is_launched() and _store is None:
        threading.Thread(target=_end_with_launcher, daemon=True).start()
        store, _, _ = next(rendezvous("env://"))
        # a launcher that starts ranks again keeps its store, with what those before them have said
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        _store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]


def _end_with_launcher() -> None:
    """Until training begins, end this process if the launcher is gone: to its store PyTorch would try to connect for
    half an hour, and there is nothing to save yet."""
    while _group is None:
        if launcher_is_gone():
            os._exit(1)
        time.sleep(POLL)


@contextmanager
def first_on_each_node() -> Iterator[None]:
    """The first rank of each node goes first, the others of the node after it, however long that takes.

    After it all ranks have arrived, so that the time-outs of training may be short.
    """
    if _store is None:
        yield
        return
    if local_rank():
        _wait(lambda store: store.check([f"prepared/{node()}"]))
    yield
    if not local_rank():
        _store.set(f"prepared/{node()}", "")
    _store.add("arrived", 1)
    _wait(lambda store: store.add("arrived", 0) == world_size())


def _wait(is_so: Any) -> None:
    while not is_so(_store):
        time.sleep(POLL)


@contextmanager
def process_group(device: torch.device, timeout: float, single: bool = False) -> Iterator[None]:
    """The process group of a run, for the time of the body; `timeout` in seconds is that of each of its collectives.

    `single`: a process that was not launched as one of several makes a group of its own, too, as FSDP needs one.
    """
    global _group
    if _store is None and not single:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = _store or dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(
        backend, timeout=timedelta(seconds=timeout), store=store, rank=rank(), world_size=world_size()
    )
    _group = dist.group.WORLD
    try:
        yield
    finally:
        dist.destroy_process_group()


def launcher_is_gone() -> bool:
    """Whether the process that launched this rank has died: the rank would be left alone."""
    return is_launched() and os.getppid() != _PARENT


def sum_over_ranks(values: Tensor) -> Tensor:
    """Of losses, counts of predicted tokens, and counts of tokens per expert: the sum over all ranks."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def any_rank(flag: bool) -> bool:
    """Whether it is so on any rank: asked to stop, a loss that is not finite."""
    return flag if world_size() == 1 else bool(sum_over_ranks(torch.tensor(float(flag))))


def from_rank_zero(value: Any) -> Any:
    """What rank 0 has, on all ranks: a decision of its clock (is a checkpoint due?), what it found in the folder."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def check_equal(what: str, value: Any) -> None:
    """Raises `UserError` on all ranks if they do not have the same value, such as the fingerprint of a text."""
    if any_rank(from_rank_zero(value) != value):
        raise UserError(f"{what} on one node than on another; all nodes need the same files")


def is_lost_contact(error: RuntimeError) -> bool:
    """Whether an error of a collective means that another rank is gone or does not answer."""
    return world_size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


def first_to_report() -> bool:
    """Whether no other rank has said yet why the run ends: one message is enough."""
    try:
        if _store is not None:
            return bool(_store.compare_set("reported", "", str(rank())) == str(rank()).encode())
    except RuntimeError:  # the store is gone together with the launcher
        pass
    return local_rank() == 0


@contextmanager
def only_one_reports() -> Iterator[None]:
    """Of all ranks, let one say why the run ends; the others leave without a word. Lost contact is said in one line."""
    try:
        yield
    except (UserError, KeyboardInterrupt, OSError):
        if first_to_report():
            raise
        raise SystemExit(1) from None
    except RuntimeError as error:
        if not first_to_report():
            raise SystemExit(1) from None
        if not is_lost_contact(error):
            raise
        why = "it was killed, or did not answer within --rank-timeout"
        print(f"train: lost contact with another process ({why}); the same command goes on", file=sys.stderr)
        raise SystemExit(1) from None
