"""How fast a run trains, and which share of what the products of its devices allow that is.

The share is the model FLOP utilisation (Chowdhery et al. 2022, arXiv 2204.02311), but of the products that were
measured here, not of those that the maker promises.
"""

import statistics
import time
from functools import cached_property

import torch

from mini_transformer.config import ModelConfig
from mini_transformer.runtime import world_size
from mini_transformer.training.plan import flops_per_token

SIZES = {"cuda": 4096}  # of square matrices that are large enough for full speed, soon multiplied, and fit beside a run
PRODUCTS = {"cuda": 8}  # in a row, on a device that would wait for each of them to be launched


class Speed:
    """The speed of a phase, from the seconds of its iterations."""

    def __init__(self, config: ModelConfig, tokens: int, device: torch.device, precision: torch.dtype) -> None:
        """`tokens`: of an iteration, on all ranks."""
        self._config, self._tokens, self._device, self._precision = config, tokens, device, precision
        self._new, self._all = list[float](), list[float]()

    def begin(self) -> None:
        """A phase starts or goes on."""
        self._new, self._all = [], []

    def add(self, seconds: float) -> float:
        """Count an iteration; returns its tokens/s."""
        self._new.append(seconds)
        self._all.append(seconds)
        return self._tokens / seconds

    def take(self) -> dict[str, float]:
        """The metrics of the iterations since the last call."""
        speed = self._tokens / statistics.fmean(self._new)
        self._new = []
        return {"tokens_per_second": round(speed), "flop_utilisation": round(speed / self._limit, 4)}

    def summary(self) -> str:
        """The phase in words; empty without iterations."""
        if not self._all:
            return ""
        speed = self._tokens / statistics.median(self._all)
        return f"{speed:,.0f} tokens/s, {speed / self._limit:.0%} of what the products of this device allow"

    @cached_property
    def _limit(self) -> float:
        """Tokens/s of all ranks if they did nothing but their products."""
        return world_size() * product_speed(self._device, self._precision) / flops_per_token(self._config)


def product_speed(device: torch.device, precision: torch.dtype) -> float:
    """Floating-point operations per second of a product of large matrices."""
    size, count = SIZES.get(device.type, 768), PRODUCTS.get(device.type, 1)
    a, b, out = (torch.randn(size, size, device=device, dtype=precision) for _ in range(3))
    seconds = []
    for _ in range(4):  # the first one warms up
        started = time.perf_counter()
        for _ in range(count):
            torch.mm(a, b, out=out)
        out[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * count * size**3 / min(seconds[1:])
