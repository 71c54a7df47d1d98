"""The points at which the ranks of a run must agree, named in one place.

A run is one process so far, which agrees with itself: nothing is exchanged here yet. What is decided by these functions
is decided by all ranks together, so none leaves a step alone.
"""

from torch import Tensor


def sum_over_ranks(values: Tensor) -> Tensor:
    """Of losses, counts of predicted tokens, and counts of tokens per expert: the sum over all ranks."""
    return values


def any_rank(flag: bool) -> bool:
    """Whether it is so on any rank: asked to stop, a loss that is not finite."""
    return flag


def rank_zero_decides(flag: bool) -> bool:
    """What rank 0 says, on all ranks: whether a checkpoint is due, which its clock tells."""
    return flag
