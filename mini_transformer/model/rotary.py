"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864), plain and YaRN (Peng et al. 2023, arXiv 2309.00071).

Axes: B batch, H heads, T tokens, D head size. Element i of a head is rotated with element i + D/2 (not with its
neighbour), as in GPT-OSS and Llama.
"""

import math

import torch
from torch import Tensor

from mini_transformer.config import RopeConfig


def _yarn_ramp(rope: RopeConfig, head_dim: int) -> Tensor:
    """How far each frequency (D/2) is interpolated: 0 keeps it (high frequencies), 1 divides it by the factor."""

    def dimension(rotations: float) -> float:
        # the fractional index of the frequency that rotates this many times within the original context
        return head_dim * math.log(rope.original_context / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    return ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)


def rotary_table(rope: RopeConfig, head_dim: int, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the positions 0 to `positions` - 1, each (T, D/2) in float32."""
    frequency = rope.theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    scale = 1.0
    if rope.kind == "yarn" and rope.factor != 1.0:
        ramp = _yarn_ramp(rope, head_dim)
        frequency = frequency / rope.factor * ramp + frequency * (1 - ramp)
        scale = 0.1 * math.log(rope.factor) + 1.0
    angle = torch.outer(torch.arange(positions, dtype=torch.float32), frequency)
    return angle.cos() * scale, angle.sin() * scale


def rotate(x_bhtd: Tensor, cos_td: Tensor, sin_td: Tensor) -> Tensor:
    """Rotate queries or keys (B, H, T, D) by the angles of their positions; tables are (T, D/2) or (B, 1, T, D/2)."""
    first, second = x_bhtd.chunk(2, dim=-1)
    cos, sin = cos_td.to(x_bhtd.dtype), sin_td.to(x_bhtd.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
