"""Keys and values of the tokens so far, so that one more token costs one step, not the whole context again."""

import torch
from torch import Tensor

from mini_transformer.config import ModelConfig


class KVCache:
    """Keys and values of every layer, for at most one block of tokens; `length` is the number that it holds.

    Axes: L layers, B batch, G key/value heads, T new tokens, D head size.
    """

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.n_layer, batch, config.n_kv_head, config.block_size, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # (L, B, G, block size, D)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, k_bgtd: Tensor, v_bgtd: Tensor) -> tuple[Tensor, Tensor]:
        """Append a layer's new keys and values; returns all of them, (B, G, length + T, D), and leaves `length`."""
        end = self.length + k_bgtd.shape[2]
        self.keys[layer, :, :, self.length : end] = k_bgtd
        self.values[layer, :, :, self.length : end] = v_bgtd
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
