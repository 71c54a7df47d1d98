"""Drawing a token from logits, in NumPy: for so few numbers torch's dispatcher would cost more than the sums.

Each processor is a function that changes scores (V,) in place; a score of -inf is a token that is not drawn.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mini_transformer.config import SamplingConfig
from mini_transformer.errors import UserError

Scores = NDArray[np.float32]
COLDEST = 1e-30  # tells all logits apart, and their differences over it are still float32 numbers
FIRST_SORTED = 64  # likely tokens that top-p sorts at first; eight times as many while they do not suffice


def penalise_repetition(logits_v: Scores, seen: Sequence[int], penalty: float) -> None:
    """Make tokens that are there less likely (above 1) or more: CTRL, Keskar et al. 2019 (arXiv 1909.05858)."""
    ids = np.unique(seen)
    logits = logits_v[ids]
    logits_v[ids] = np.where(logits > 0, logits / penalty, logits * penalty)


def keep_top_k(scores_v: Scores, k: int) -> None:
    """Keep the k highest, and those equal to the last of them (Fan et al. 2018, arXiv 1805.04833)."""
    if k < len(scores_v):
        scores_v[scores_v < np.partition(scores_v, -k)[-k]] = -np.inf


def keep_top_p(scores_v: Scores, p: float) -> None:
    """Keep the likeliest tokens whose probabilities first reach p (Holtzman et al. 2020, arXiv 1904.09751)."""
    weights_v = np.exp(scores_v, dtype=np.float64)
    wanted, count = p * weights_v.sum(), FIRST_SORTED
    while True:  # of a vocabulary only so many are sorted as it takes
        count = min(count, len(weights_v))
        likely = np.argpartition(-weights_v, count - 1)[:count]
        likely = likely[np.argsort(-weights_v[likely], kind="stable")]
        mass = weights_v[likely].cumsum()
        if mass[-1] >= wanted or count == len(weights_v):
            break
        count *= 8
    kept = likely[: int(mass.searchsorted(wanted)) + 1]
    scores = scores_v[kept]
    scores_v.fill(-np.inf)
    scores_v[kept] = scores


def keep_min_p(scores_v: Scores, p: float) -> None:
    """Keep tokens at least p times as likely as the likeliest, of score 0 (Nguyen et al. 2024, arXiv 2407.01082)."""
    scores_v[scores_v < math.log(p)] = -np.inf


def sample(logits_v: Scores, sampling: SamplingConfig, generator: np.random.Generator, seen: Sequence[int] = ()) -> int:
    """Draw one token id from logits (V,). Raises `UserError` if no token has a probability.

    `seen`: the tokens that the repetition penalty is for. V numbers of the generator are used up, unless the
    temperature is 0: token i arrives after an exponentially distributed time of mean 1 / p_i, and the first to arrive
    is drawn (the Gumbel-max trick). So rounding changes a draw only where two tokens arrive at the same time; in a
    running sum of the probabilities it would move the border of every token.
    """
    if sampling.repetition_penalty != 1 and seen:
        penalise_repetition(logits_v, seen, sampling.repetition_penalty)
    likeliest = int(logits_v.argmax())
    if not math.isfinite(logits_v[likeliest]):  # NaN, or every token suppressed
        raise UserError("the model gives no token a probability: its weights are damaged, or all tokens are suppressed")
    if sampling.temperature == 0:
        return likeliest
    scores_v = logits_v - logits_v[likeliest]  # 0 at most, so that exp cannot overflow
    scores_v *= 1 / max(sampling.temperature, COLDEST)
    if sampling.top_k:
        keep_top_k(scores_v, sampling.top_k)
    if sampling.top_p < 1:
        keep_top_p(scores_v, sampling.top_p)
    if sampling.min_p:
        keep_min_p(scores_v, sampling.min_p)
    times_v = generator.standard_exponential(len(scores_v), dtype=np.float32)
    return int((np.exp(scores_v) / np.maximum(times_v, np.float32(1e-30))).argmax())  # what has no weight never wins
