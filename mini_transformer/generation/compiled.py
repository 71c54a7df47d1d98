"""The step of one token for each row of a batch, compiled by numba: one call for each layer, for all rows.

Each thread takes some of the rows, and reads each weight once for them. Where no weight needs more than the 16 bits of
bfloat16, half as much is read: of each matrix a copy of those bits. A row's logits are the same, bit for bit, in any
batch.
"""

from dataclasses import replace
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from mini_transformer.generation.kernels import add_layer, last_layer
from mini_transformer.generation.single_row import Array, LayerWeights, array, transposed
from mini_transformer.model.attention import KVCache
from mini_transformer.model.decoder import Block, Decoder

MAX_THREADS = 8  # more have not been tried
MATRICES = ("qkv", "out", "gate_up", "down")


def is_short(matrix: Array) -> bool:
    """Whether bfloat16, the upper half of float32, holds all its numbers."""
    return not (matrix.view(np.uint32) & 0xFFFF).any()


def shortened(matrix: Array) -> NDArray[Any]:
    """The bits of its numbers in bfloat16, as uint16."""
    return (matrix.view(np.uint32) >> 16).astype(np.uint16)


class CompiledRows:
    """Takes the step of a model that `single_row.fits`, with one token for each row of a cache that both share.

    It is compiled when it is made, or loaded from the disk. The weights are those that the model has then.
    """

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        self.config, self.cache = model.config, cache
        self.embed, self.lm_head = array(model.embed_tokens.weight), transposed(array(model.lm_head.weight))
        layers = [LayerWeights.of(block) for block in model.layers if isinstance(block, Block)]
        if all(map(is_short, (self.lm_head, *(getattr(layer, name) for layer in layers for name in MATRICES)))):
            self.lm_head = shortened(self.lm_head)
            layers = [replace(w, **{name: shortened(getattr(w, name)) for name in MATRICES}) for w in layers]
        self.norm, self.eps = array(model.norm.weight), np.float32(model.config.norm_eps)
        self.weights = [layer.arrays() for layer in layers]
        self.tables = array(model.get_buffer("cos")), array(model.get_buffer("sin"))
        torch_threads = torch.get_num_threads()
        self.threads = min(MAX_THREADS, torch_threads, numba.get_num_threads())
        self.step([0] * len(cache.lengths))
        cache.lengths = [0] * len(cache.lengths)
        torch.set_num_threads(torch_threads)  # numba, as it starts, sets the number for all that use OpenMP
        if self.threads > 1 and numba.threading_layer() == "workqueue":  # its threads wake too slowly to gain anything
            self.threads = 1

    def step(self, tokens: list[int]) -> Array:
        """The logits (N, V) after one more token of each row, which are added to the cache."""
        cache, x, positions = self.cache, self.embed[tokens], np.array(self.cache.lengths)
        keys, values = array(cache.keys), array(cache.values)
        for layer, weights in enumerate(self.weights):
            numbers = (self.config.window(layer), self.eps, self.config.experts_per_token, self.threads)
            add_layer(x, positions, numbers, keys[layer], values[layer], self.tables, weights)
        cache.lengths = [length + 1 for length in cache.lengths]
        # no product of NumPy's here: the threads of its BLAS go on spinning for a while, in the way of numba's
        return last_layer(x, self.norm, self.eps, self.lm_head, self.threads)
