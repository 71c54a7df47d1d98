"""Grouped-query attention with learned sinks and a sliding window, as in GPT-OSS; `sdpa` computes it.

Axes: L layers, B batch, G key/value heads, T new tokens, S all tokens, C channels, D head size.
"""

import torch
from torch import Tensor, nn

from mini_transformer.config import ModelConfig
from mini_transformer.model.rotary import rotate
from mini_transformer.model.sdpa import sdpa_with_sinks


class KVCache:
    """Keys and values of the tokens that rows of a batch hold (`lengths` of them), so that one more costs one step.

    S is the block size, or `size`.
    """

    def __init__(
        self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype, size: int | None = None
    ) -> None:
        shape = (config.n_layer, batch, config.n_kv_head, size or config.block_size, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # (L, B, G, S, D)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = [0] * batch

    def begin(self, count: int) -> Tensor:
        """The positions (B, T) of the next `count` tokens of each row, where `extend` will put them."""
        device = self.keys.device
        lengths_b = torch.tensor(self.lengths, device=device)
        self._rows_b1 = torch.arange(len(self.lengths), device=device)[:, None]
        self._positions_bt = lengths_b[:, None] + torch.arange(count, device=device)
        self._end = max(self.lengths) + count
        self.lengths = [length + count for length in self.lengths]
        return self._positions_bt

    def extend(self, layer: int, k_bgtd: Tensor, v_bgtd: Tensor) -> tuple[Tensor, Tensor]:
        """Append a layer's new keys and values; returns those of all rows up to the longest, (B, G, S, D)."""
        for cached, new in ((self.keys[layer], k_bgtd), (self.values[layer], v_bgtd)):
            cached[self._rows_b1, :, self._positions_bt] = new.transpose(1, 2)
        return self.keys[layer, :, :, : self._end], self.values[layer, :, :, : self._end]

    def query_positions(self) -> Tensor | None:
        """The positions (B, T) of the newest tokens; None where rows are equally long, so that they are the last."""
        return self._positions_bt if len(set(self.lengths)) > 1 else None

    def keep(self, rows: list[int]) -> None:
        """Forget all rows but these."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.lengths = [self.lengths[row] for row in rows]

    def copy(self, rows: list[int], other: "KVCache", others: list[int]) -> None:
        """Let rows hold what the rows `others` of another cache do."""
        for row, source in zip(rows, others, strict=True):
            length = self.lengths[row] = other.lengths[source]
            self.keys[:, row, :, :length] = other.keys[:, source, :, :length]
            self.values[:, row, :, :length] = other.values[:, source, :, :length]


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
        positions_bt = None
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
            positions_bt = cache.query_positions()
        out = sdpa_with_sinks(q, k, v, self.sinks, self.window, positions_bt)
        return self.o_proj(out.transpose(1, 2).flatten(2))
