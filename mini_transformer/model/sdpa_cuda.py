"""Attention with sinks through PyTorch's CUDA flash kernels (Dao 2023, arXiv 2307.08691), forward and backward.

What `sdpa.flash_forward` and `flash_backward` are for a CPU: the same correction by the log-sum-exp, in bfloat16,
with a window that the kernel knows itself, so that no bias is ever written. Axes as in `sdpa`.
"""

import torch
from torch import Tensor

FORWARD, BACKWARD = torch.ops.aten._flash_attention_forward, torch.ops.aten._flash_attention_backward

PROVED = False  # whether `training.proofs` has seen the kernels of this process's GPU


def suits(q_bhtd: Tensor) -> bool:
    """Whether the kernels take these queries, if all keys are those of the queries' own tokens."""
    D = q_bhtd.shape[-1]
    return PROVED and q_bhtd.dtype is torch.bfloat16 and D % 8 == 0 and D <= 256


class FlashWithSinks(torch.autograd.Function):
    """Causal attention (B, H, T, D) of T queries to T keys; at most `window` of them for each query."""

    @staticmethod
    def forward(ctx, q_bhtd, k_bgsd, v_bgsd, sinks_h, window):  # type: ignore[no-untyped-def]
        q, k, v = (x.transpose(1, 2) for x in (q_bhtd, k_bgsd, v_bgsd))  # as the kernel has it
        T = q.shape[1]
        ctx.left = window - 1 if window < T else -1  # how many keys before its own a query sees; -1: all
        out, lse_bht, rng, unused, _ = FORWARD(q, k, v, None, None, T, T, 0.0, True, False, window_size_left=ctx.left)
        sinks = sinks_h.float()[:, None]
        out = out * torch.sigmoid(lse_bht - sinks).to(out.dtype).transpose(1, 2).unsqueeze(-1)
        ctx.save_for_backward(q, k, v, sinks_h, out, torch.logaddexp(lse_bht, sinks), rng, unused)
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx, grad_bhtd):  # type: ignore[no-untyped-def]
        q, k, v, sinks_h, out, lse_bht, rng, unused = ctx.saved_tensors
        grad, T = grad_bhtd.transpose(1, 2), q.shape[1]
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        more = (None, None, T, T, 0.0, True, rng, unused)
        d_q, d_k, d_v = BACKWARD(grad, q, k, v, out, lse_bht, *more, window_size_left=ctx.left)
        sink_probability = torch.exp(sinks_h.float()[:, None] - lse_bht)
        d_sinks = -(sink_probability * (grad.float() * out.float()).sum(-1).transpose(1, 2)).sum((0, 2))
        return *(x.transpose(1, 2) for x in (d_q, d_k, d_v)), d_sinks.to(sinks_h.dtype), None
