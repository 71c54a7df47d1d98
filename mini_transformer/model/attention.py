"""Grouped-query attention with learned sinks and a sliding window, as in GPT-OSS; `sdpa` computes it.

Axes: L layers, B batch, G key/value heads, T new tokens, C channels, D head size.
"""

import torch
from torch import Tensor, nn

from mini_transformer.config import ModelConfig
from mini_transformer.model.rotary import rotate
from mini_transformer.model.sdpa import sdpa_with_sinks


class KVCache:
    """Keys and values of up to one block of tokens (`length` so far), so that one more token costs one step."""

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


class Attention(nn.Module):
    """The attention of one layer: projections with biases, rotary positions, sinks, sliding window.

    Takes (B, T, C) and returns (B, T, C). With a cache, queries also attend to the tokens that it holds.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.window = config.window(layer)
        query, key_value = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.q_proj = nn.Linear(config.n_embd, query)
        self.k_proj = nn.Linear(config.n_embd, key_value)
        self.v_proj = nn.Linear(config.n_embd, key_value)
        self.o_proj = nn.Linear(query, config.n_embd)
        self.sinks = nn.Parameter(torch.empty(config.n_head))

    def forward(self, x_btc: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None = None) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x_btc).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for proj in projections)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        return self.o_proj(sdpa_with_sinks(q, k, v, self.sinks, self.window).transpose(1, 2).flatten(2))
