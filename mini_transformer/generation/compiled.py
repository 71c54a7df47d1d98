"""The step of one token for each row of a batch, compiled by numba: one call for each layer, for all rows.

Each thread takes some of the rows, and reads each weight once for them. A row's logits are the same, bit for bit, in
any batch.
"""

import numba
import numpy as np
import torch

from mini_transformer.generation.kernels import add_layer, last_layer
from mini_transformer.generation.single_row import Array, LayerWeights, array, transposed
from mini_transformer.model.attention import KVCache
from mini_transformer.model.decoder import Block, Decoder

MAX_THREADS = 8  # more have not been tried


class CompiledRows:
    """Takes the step of a model that `single_row.fits`, with one token for each row of a cache that both share.

    It is compiled when it is made, or loaded from the disk. The weights are those that the model has then.
    """

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        self.config, self.cache = model.config, cache
        self.embed, self.lm_head = array(model.embed_tokens.weight), transposed(array(model.lm_head.weight))
        self.norm, self.eps = array(model.norm.weight), np.float32(model.config.norm_eps)
        self.weights = [LayerWeights.of(block).arrays() for block in model.layers if isinstance(block, Block)]
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
