"""The step of one token on a GPU as a CUDA graph: one launch instead of a thousand, for any number of rows.

A graph knows addresses, not lengths: it computes over all of the cache, and the positions of the rows, which lie in
memory of the device, say what each of them may see.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mini_transformer.model.attention import KVCache
from mini_transformer.model.decoder import Decoder

WARM_UPS = 2
FAR = 1e-2  # of the largest logit: how far the graph's may be from the model's own


class _Positions(KVCache):
    """The keys and values of another cache, with the positions of the next tokens in memory of the device."""

    def __init__(self, cache: KVCache) -> None:
        self.keys, self.values, self.lengths = cache.keys, cache.values, [0]
        self._end = cache.keys.shape[3]
        rows = torch.arange(cache.keys.shape[1], device=cache.keys.device)
        self._rows_b1, self._positions_bt = rows[:, None], torch.zeros_like(rows)[:, None]

    def place(self, lengths: Sequence[int]) -> None:
        """Say how long the rows are."""
        self._positions_bt.copy_(torch.tensor(lengths)[:, None])

    def begin(self, count: int) -> Tensor:
        return self._positions_bt

    def query_positions(self) -> Tensor:
        return self._positions_bt


class GraphedStep:
    """Takes the step of one token in all rows of a cache; recorded anew when the cache loses rows."""

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        """Raises `RuntimeError` if the graph cannot be recorded, or finds something else than the model."""
        self.model, self.cache = model, cache
        lengths = cache.lengths
        ids = [0] * len(lengths)
        with torch.inference_mode():
            wanted_bv = model(torch.tensor(ids, device=cache.keys.device)[:, None], cache)[:, -1].float().cpu().numpy()
        cache.lengths = lengths
        off = np.abs(self.step(ids) - wanted_bv).max()
        cache.lengths = lengths
        if not off <= FAR * np.abs(wanted_bv).max():
            raise RuntimeError(f"its logits are up to {off:.2g} from the model's")

    @torch.inference_mode()
    def _record(self) -> None:
        device = self.cache.keys.device
        self.keys, self.positions = self.cache.keys, _Positions(self.cache)
        self.positions.place(self.cache.lengths)  # a warm-up writes where the step will
        self.ids = torch.zeros((len(self.cache.lengths), 1), dtype=torch.int64, device=device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.model(self.ids, self.positions)
        torch.cuda.current_stream(device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits_bv = self.model(self.ids, self.positions)[:, -1].float()

    @torch.inference_mode()
    def step(self, ids: list[int]) -> NDArray[np.float32]:
        """The logits (B, V) after one more token in each row."""
        if self.__dict__.get("keys") is not self.cache.keys:
            self._record()
        self.ids.copy_(torch.tensor(ids)[:, None])
        self.positions.place(self.cache.lengths)
        self.graph.replay()
        self.cache.lengths = [length + 1 for length in self.cache.lengths]
        return self.logits_bv.cpu().numpy()
