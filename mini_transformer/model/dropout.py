"""Dropout that is the same wherever a row of the batch is computed.

The mask of a row follows from that row's seed alone, so that a step is the same whatever the number of processes and of
micro-batches. `seed_dropout` gives the seeds; a model without them drops as PyTorch does.
"""

import threading
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
_local = threading.local()  # of each thread on a CPU: the seeds of each layer
_held: WeakKeyDictionary[nn.Module, dict[int, Tensor]] = WeakKeyDictionary()  # on a device, by model and rows: (S, B)


class RowDropout(nn.Module):
    """Zeroes a fraction of the activations (B, T, C) and scales the others up, as `torch.nn.Dropout` does.

    The fraction is that of the end of a phase; `set_dropout` says what it is now.
    """

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self.fraction, self.kept = fraction, 1 - fraction
        # on a device, where no threads share the work, and where a number would be compiled in
        self.seeds_b: Tensor | None = None
        self.kept_there: Tensor | None = None

    def forward(self, x_btc: Tensor) -> Tensor:
        mask_btc = self.mask(x_btc)
        return x_btc if mask_btc is None else x_btc * mask_btc

    def mask(self, x_btc: Tensor) -> Tensor | None:
        """What the activations are multiplied by now: 0 or 1 / (1 - fraction); `None` if nothing is dropped."""
        if not self.training or not self.fraction:
            return None
        if x_btc.device.type != "cpu" and self.seeds_b is not None and self.kept_there is not None:
            mask = hashed_mask(self.seeds_b, x_btc.shape, self.kept_there)
            return (mask / self.kept_there).to(x_btc.dtype)
        keep, seeds_b = self.kept, _local.__dict__.get("seeds", {}).get(self)  # int64
        if seeds_b is None:
            return torch.empty_like(x_btc).bernoulli_(keep).div_(keep)
        return (drawn_mask(seeds_b, x_btc.shape, keep) * (1 / keep)).to(x_btc.dtype)


def drawn_mask(seeds_b: Tensor, shape: torch.Size, keep: float) -> Tensor:
    """True for a fraction `keep` of the elements, to 1/65536: 16 random bits for each, from a generator for each row.

    PyTorch's own generator takes ten times as long, a tenth of a step.
    """
    words = -(-shape[1:].numel() // 4)
    rows = [np.random.SFC64(seed).random_raw(words).view(np.int16) for seed in seeds_b.tolist()]
    bits = torch.from_numpy(np.stack(rows)[:, : shape[1:].numel()]).view(shape)
    return bits <= round(keep * 2**16) - 2**15 - 1  # which int16 holds if all are kept, too


def hashed_mask(seeds_b: Tensor, shape: torch.Size, keep: Tensor) -> Tensor:
    """True for a fraction `keep`, a scalar, of the elements: a hash of seed and position, in a few passes over all.

    A generator per row would cost a GPU a kernel for each.
    """
    positions_n = torch.arange(shape[1:].numel(), device=seeds_b.device, dtype=torch.int32)
    h_bn = mixed(mixed(seeds_b.to(torch.int32)).unsqueeze(1) + positions_n)
    return (h_bn <= keep * 2**32 - 2**31).view(*shape)


def mixed(h: Tensor) -> Tensor:
    """The mixing of MurmurHash3, in int32 that wraps."""
    for shift, factor in ((16, -2048144789), (13, -1028477387)):
        h = (h ^ ((h >> shift) & ((1 << (32 - shift)) - 1))) * factor
    return h ^ ((h >> 16) & 0xFFFF)


def dropout_layers(model: nn.Module) -> list[RowDropout]:
    """The layers of a model that drop something."""
    return [module for module in model.modules() if isinstance(module, RowDropout) and module.fraction]


def set_dropout(model: nn.Module, start: float | None, progress: float) -> None:
    """Let the fraction go evenly from `start` to that of the end, of which it is the same without a start."""
    for layer in dropout_layers(model):
        first = layer.fraction if start is None else start
        layer.kept = 1 - (first + (layer.fraction - first) * progress)


def seed_dropout(model: nn.Module, seed: Sequence[int], rows: Sequence[int], device: torch.device = CPU) -> None:
    """Say which masks the next forward pass of this thread takes: of `seed`, for these rows of the whole batch.

    On a device the seeds of so many rows always lie in the same memory, where a CUDA graph finds them.
    """
    layers = dropout_layers(model)
    if not layers:
        return
    states = [np.random.SeedSequence([*seed, row]).generate_state(len(layers), np.uint64) for row in rows]
    seeds_sb = torch.from_numpy((np.stack(states) >> np.uint64(1)).astype(np.int64).T.copy())
    if device.type == "cpu":
        _local.seeds = WeakKeyDictionary(zip(layers, seeds_sb, strict=True))
        return
    held = _held.setdefault(model, {})
    if len(rows) not in held:
        held[len(rows)] = torch.empty_like(seeds_sb, device=device)
    held_sb = held[len(rows)].copy_(seeds_sb)
    for layer, seeds_b in zip(layers, held_sb, strict=True):
        layer.seeds_b = seeds_b
        if layer.kept_there is None:
            layer.kept_there = torch.empty((), device=device)
        layer.kept_there.fill_(layer.kept)
