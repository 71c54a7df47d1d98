"""Keys and values of the tokens already read, so that writing one more costs one token, not the whole context."""

import torch
from torch import Tensor

from mini_transformer.config import ModelConfig


class KVCache:
    """Room for one block of keys and values per layer.

    Axes: B batch, G key/value heads, T tokens (up to `block_size`), D head size. `length` counts the tokens held.
    """

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.n_layer, batch, config.n_kv_head, config.block_size, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, k_bgtd: Tensor, v_bgtd: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values behind those held; returns all of them, (B, G, length + T, D)."""
        end = self.length + k_bgtd.shape[2]
        self.keys[layer, :, :, self.length : end] = k_bgtd
        self.values[layer, :, :, self.length : end] = v_bgtd
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
