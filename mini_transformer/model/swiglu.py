"""The activation of GPT-OSS's experts: a SwiGLU (Shazeer 2020, arXiv 2002.05202), clamped and with one added."""

import torch
from torch import Tensor

SWIGLU_ALPHA = 1.702  # fixed in GPT-OSS and in every reader of its checkpoints
SWIGLU_LIMIT = 7.0


def clamped_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """(up + 1) * gate * sigmoid(alpha * gate), with gate at most 7 and up within ±7."""
    gate, up = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
    return (up + 1) * gate * torch.sigmoid(SWIGLU_ALPHA * gate)
