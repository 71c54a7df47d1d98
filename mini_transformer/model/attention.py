"""Grouped-query attention with learned sinks and a sliding window, as in GPT-OSS; `sdpa` computes it.

Axes: B batch, T new tokens, C channels.
"""

import torch
from torch import Tensor, nn

from mini_transformer.config import ModelConfig
from mini_transformer.model.kv_cache import KVCache
from mini_transformer.model.rotary import rotate
from mini_transformer.model.sdpa import sdpa_with_sinks


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
        q, k, v = (
            proj(x_btc).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        return self.o_proj(sdpa_with_sinks(q, k, v, self.sinks, self.window).transpose(1, 2).flatten(2))
