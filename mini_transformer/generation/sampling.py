"""Drawing a token from logits, in NumPy: for so few numbers torch's dispatcher would cost more than the sums."""

import math
import random

import numpy as np
from numpy.typing import NDArray

from mini_transformer.config import SamplingConfig
from mini_transformer.errors import UserError

COLDEST = 1e-30  # tells all logits apart, and their differences over it are still float32 numbers


def sample(logits_v: NDArray[np.float32], sampling: SamplingConfig, generator: random.Random) -> int:
    """Draw one token id from logits (V,). Raises `UserError` if no token has a probability.

    One number of the generator is used up, unless the temperature is 0; Python promises the same numbers for a seed.
    """
    likeliest = int(logits_v.argmax())
    if not math.isfinite(logits_v[likeliest]):  # NaN, or every token suppressed
        raise UserError("the model gives no token a probability: its weights are damaged, or all tokens are suppressed")
    if sampling.temperature == 0:
        return likeliest
    scores = logits_v - logits_v[likeliest]  # 0 at most, so that exp cannot overflow
    scores *= 1 / max(sampling.temperature, COLDEST)
    weights = np.exp(scores).astype(np.float64)  # of many unlikely tokens, too, the sum counts each
    if not sampling.top_k and sampling.top_p == 1:
        return _draw(weights.cumsum(), generator)
    ids = (-scores).argsort(kind="stable")[: sampling.top_k or None]
    mass = weights[ids].cumsum()
    likely = int(mass.searchsorted(sampling.top_p * mass[-1])) + 1  # those before which there is less than top-p
    return int(ids[_draw(mass[:likely], generator)])


def _draw(mass: NDArray[np.float64], generator: random.Random) -> int:
    """An index, each as likely as it adds to the running sum `mass`."""
    # 1 - random() is above 0 and at most 1: what adds nothing is never drawn, and the end never passed
    return int(mass.searchsorted((1 - generator.random()) * mass[-1]))
