"""Dropout that is the same wherever a row of the batch is computed.

The mask of a row follows from that row's seed alone, so that a step is the same whatever the number of processes and of
micro-batches. `seed_dropout` gives the seeds; a model without them drops as PyTorch does.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_generator = torch.Generator()


class RowDropout(nn.Module):
    """Zeroes a fraction of the activations (B, T, C) and scales the others up, as `torch.nn.Dropout` does.

    `seeds_b` are int64, on the CPU.
    """

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction
        self.seeds_b: Tensor | None = None

    def forward(self, x_btc: Tensor) -> Tensor:
        if not self.training or not self.fraction:
            return x_btc
        if self.seeds_b is None:
            return F.dropout(x_btc, self.fraction)
        keep = 1 - self.fraction
        if x_btc.device.type == "cpu":
            mask_btc = torch.empty_like(x_btc)
            for row, seed in zip(mask_btc, self.seeds_b.tolist(), strict=True):
                row.bernoulli_(keep, generator=_generator.manual_seed(seed))
        else:
            mask_btc = hashed_mask(self.seeds_b.to(x_btc.device), x_btc.shape, keep).to(x_btc.dtype)
        return x_btc * mask_btc.div_(keep)


def hashed_mask(seeds_b: Tensor, shape: Sequence[int], keep: float) -> Tensor:
    """True for a fraction `keep` of the elements: a hash of seed and position, in a few passes over all rows at once.

    A generator per row would cost a GPU a kernel for each. The mixing is that of MurmurHash3, in int32 that wraps.
    """
    size = shape[1:].numel() if isinstance(shape, torch.Size) else int(np.prod(shape[1:]))
    h = torch.arange(size, device=seeds_b.device, dtype=torch.int32) * -1640531535  # 2^32 / golden ratio
    h = seeds_b.to(torch.int32)[:, None] ^ h
    for shift, factor in ((16, -2048144789), (13, -1028477387)):
        h = (h ^ ((h >> shift) & ((1 << (32 - shift)) - 1))) * factor
    h = h ^ ((h >> 16) & 0xFFFF)
    return (h < int(keep * 2**32) - 2**31).view(*shape)


def seed_dropout(model: nn.Module, seed: Sequence[int], rows: Sequence[int]) -> None:
    """Say which masks the next forward pass takes: those of `seed`, for these rows of the whole batch."""
    layers = [module for module in model.modules() if isinstance(module, RowDropout) and module.fraction]
    if not layers:
        return
    states = [np.random.SeedSequence([*seed, row]).generate_state(len(layers), np.uint64) for row in rows]
    seeds_sb = torch.from_numpy((np.stack(states) >> np.uint64(1)).astype(np.int64).T.copy())
    for layer, seeds_b in zip(layers, seeds_sb, strict=True):
        layer.seeds_b = seeds_b
