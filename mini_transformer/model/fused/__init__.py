"""A block's two halves and the loss, forward and backward by hand: on a CPU, in float32 or bfloat16.

The plain code of `attention`, `moe`, `decoder` and `nn.RMSNorm` is the reference, and is what runs everywhere else.
Here each half is one node of autograd, for fewer passes over memory: q, k and v are one product, a rotation is one
complex product, rows are gathered and weighed in one pass, and what one pass can compute again is not kept.

Axes: B batch, T tokens, N = B * T, C channels, E experts, K chosen experts per token, F hidden size of an expert, R
rows of all experts together, sorted by expert, H query heads, G key/value heads, D head size, V vocabulary.
"""

import torch
from torch import Tensor

from mini_transformer.model.fused.attention import AttentionHalf
from mini_transformer.model.fused.experts import ExpertsHalf
from mini_transformer.model.fused.loss import HeadLoss
from mini_transformer.model.fused.products import apply

__all__ = ["AttentionHalf", "ExpertsHalf", "HeadLoss", "apply", "suits"]


def suits(x: Tensor) -> bool:
    """Whether these functions are made for this tensor."""
    other = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is not torch.bfloat16
    return x.device.type == "cpu" and x.dtype is torch.float32 and not other
