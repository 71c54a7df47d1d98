"""BPE-dropout: in training some tokens are split into the two that they were merged from, and these perhaps again.

So the model sees words spelt in several ways, and over-fits less (Provilkov et al. 2020, arXiv 1910.13267). In that
paper merges are left out while text is encoded; here they are undone in rows of tokens, so that a batch still follows
from its number. Half of the rows stay as they are, and in the last part of a phase all do, since text is measured and
written so.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mini_transformer.text.tokenizer import Tokenizer

Integers = NDArray[np.int64]
ROWS = 0.5  # that are changed
UNTIL = 0.7  # of a phase


def undo_merges(tokens_t: Integers, merged_from_v2: Integers, fraction: float, random: np.random.Generator) -> Integers:
    """The same text with a fraction of its merges undone; `merged_from_v2`: see `Tokenizer.merged_from`."""
    fresh_t = np.ones(len(tokens_t), dtype=bool)
    while True:
        split_t = fresh_t & (merged_from_v2[tokens_t, 0] >= 0) & (random.random(len(tokens_t)) < fraction)
        if not split_t.any():
            return tokens_t
        pairs = merged_from_v2[tokens_t[split_t]]
        first = np.flatnonzero(split_t) + np.arange(len(pairs))  # where the first of each pair is to be
        tokens_t = np.repeat(tokens_t, 1 + split_t)
        tokens_t[first], tokens_t[first + 1] = pairs.T
        fresh_t = np.zeros(len(tokens_t), dtype=bool)
        fresh_t[first] = fresh_t[first + 1] = True


class BpeDropout:
    """Changes the batches of a run, for which a fraction of the merges of `tokenizer` is undone."""

    def __init__(self, tokenizer: Tokenizer, fraction: float) -> None:
        self.fraction = fraction
        self.merged_from_v2 = tokenizer.merged_from() if fraction else np.empty((0, 2), dtype=np.int64)

    def __call__(
        self, inputs_bt: Tensor, targets_bt: Tensor, progress: float, seed: Sequence[int], rows: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets with merges undone, cut to their length.

        What becomes of a row follows from `seed` and its number in the whole batch (`rows`). `progress`: of the phase.
        """
        if not self.fraction or progress >= UNTIL:
            return inputs_bt, targets_bt
        blocks = torch.cat((inputs_bt, targets_bt[:, -1:]), dim=1).numpy()
        for block, row in zip(blocks, rows, strict=True):
            random = np.random.default_rng([*seed, row, 1])
            if random.random() < ROWS:
                block[:] = undo_merges(block, self.merged_from_v2, self.fraction, random)[: len(block)]
        changed = torch.from_numpy(blocks)
        return changed[:, :-1].contiguous(), changed[:, 1:].contiguous()
