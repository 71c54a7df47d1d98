"""Scaled dot-product attention with learned sinks and a sliding window: the reference, and faster ways to compute it.

Axes: B batch, H query heads, G key/value heads, T new tokens (queries), S all tokens (keys), D head size.

A sink is one learned score per head that takes part in the softmax and is then dropped, so that a head may attend to
nothing (Xiao et al. 2023, arXiv 2309.17453; GPT-OSS model card, arXiv 2508.10925). With o and lse = log-sum-exp of the
plain softmax, the result is o * sigmoid(lse - sink).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mini_transformer.model import sdpa_cuda


def sliding_window_bias(q_bhtd: Tensor, keys: int, window: int, positions_bt: Tensor | None = None) -> Tensor:
    """Added to the scores: 0 for the keys a query sees, itself and `window` - 1 before it; else -inf.

    (T, S) where the queries are the last keys; (B, 1, T, S) with positions (B, T) of the queries.
    """
    j = torch.arange(keys, device=q_bhtd.device)
    i = j[-q_bhtd.shape[2] :, None] if positions_bt is None else positions_bt[:, None, :, None]
    hidden = (j > i) | (i - j >= window)
    return q_bhtd.new_zeros(hidden.shape).masked_fill(hidden, float("-inf"))


def sdpa_reference(
    q_bhtd: Tensor,
    k_bgsd: Tensor,
    v_bgsd: Tensor,
    sinks_h: Tensor,
    window: int,
    positions_bt: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention written out: returns the output (B, H, T, D) and the probabilities (B, H, T, S), sink dropped.

    `positions_bt`: of the queries, where they are not the last keys.
    """
    B, H, T, D = q_bhtd.shape
    G, S = k_bgsd.shape[1:3]
    q = q_bhtd.reshape(B, G, H // G, T, D)
    scores = torch.einsum("bgmtd,bgsd->bgmts", q, k_bgsd).reshape(B, H, T, S).float() * D**-0.5
    if T > 1 or window < S or positions_bt is not None:
        scores = scores + sliding_window_bias(q_bhtd, S, window, positions_bt)
    sink = sinks_h.float().view(1, H, 1, 1).expand(B, H, T, 1)
    probabilities = torch.cat((scores, sink), dim=-1).softmax(dim=-1)[..., :-1].to(v_bgsd.dtype)
    out = torch.einsum("bgmts,bgsd->bgmtd", probabilities.reshape(B, G, H // G, T, S), v_bgsd)
    return out.reshape(B, H, T, D), probabilities


def flash_forward(
    q_bhtd: Tensor, k_bhsd: Tensor, v_bhsd: Tensor, sinks_h: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """PyTorch's CPU flash kernel, causal where there is no bias, with the sinks added.

    Returns the output (B, H, T, D) and the log-sum-exp (B, H, T), in float32 and that includes the sinks.
    """
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_bhtd, k_bhsd, v_bhsd, 0.0, bias is None, attn_mask=bias
    )
    lse, sink = lse.view(q_bhtd.shape[:3]), sinks_h.float()[:, None]
    return out.mul_(torch.sigmoid(lse - sink).unsqueeze(-1)), torch.logaddexp(lse, sink)


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, sinks_h: Tensor, out: Tensor, lse: Tensor, bias_ts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v and the sinks, from what `flash_forward` took and returned.

    Autograd through o * sigmoid(lse - sink) would be silently wrong, since the kernel's lse carries no gradient. But
    the kernel's own backward is right when it is given the corrected output and the log-sum-exp that includes the sink.
    """
    d_q, d_k, d_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, lse, 0.0, bias_ts is None, attn_mask=bias_ts
    )
    sink_probability = torch.exp(sinks_h.float()[:, None] - lse)
    d_sinks = -(sink_probability * (grad * out).sum(-1, dtype=torch.float32)).sum((0, 2))
    return d_q, d_k, d_v, d_sinks.to(sinks_h.dtype)


class _FlashWithSinks(torch.autograd.Function):
    """`flash_forward` for autograd."""

    @staticmethod
    def forward(ctx, q, k, v, sinks_h, bias):  # type: ignore[no-untyped-def]
        out, lse = flash_forward(q, k, v, sinks_h, bias)
        ctx.save_for_backward(q, k, v, sinks_h, out, lse, bias)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return *flash_backward(grad, *ctx.saved_tensors), None


def sdpa_with_sink_key(q_bhtd: Tensor, k_bhsd: Tensor, v_bhsd: Tensor, sinks_h: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's attention with one more key in front, whose score is the sink and whose value is zero (any device)."""
    B, H, T = q_bhtd.shape[:3]
    k, v = F.pad(k_bhsd, (0, 0, 1, 0)), F.pad(v_bhsd, (0, 0, 1, 0))
    sink = sinks_h.to(q_bhtd.dtype).view(1, H, 1, 1).expand(B, H, T, 1)
    bias = torch.cat((sink, bias.expand(B, H, T, -1)), dim=-1)
    return F.scaled_dot_product_attention(q_bhtd, k, v, attn_mask=bias)


def sdpa_with_sinks(
    q_bhtd: Tensor,
    k_bgsd: Tensor,
    v_bgsd: Tensor,
    sinks_h: Tensor,
    window: int,
    positions_bt: Tensor | None = None,
) -> Tensor:
    """Attention output (B, H, T, D), by the fastest way for the device and the shape; equal to `sdpa_reference`."""
    H, T = q_bhtd.shape[1:3]
    G, S = k_bgsd.shape[1:3]
    if T == 1:
        return sdpa_reference(q_bhtd, k_bgsd, v_bgsd, sinks_h, window, positions_bt)[0]
    square = T == S and positions_bt is None
    if q_bhtd.device.type == "cuda" and square and sdpa_cuda.suits(q_bhtd):
        return sdpa_cuda.FlashWithSinks.apply(q_bhtd, k_bgsd, v_bgsd, sinks_h, window)
    k, v = (x.repeat_interleave(H // G, dim=1) if G < H else x for x in (k_bgsd, v_bgsd))
    if q_bhtd.device.type != "cpu":
        return sdpa_with_sink_key(q_bhtd, k, v, sinks_h, sliding_window_bias(q_bhtd, S, window, positions_bt))
    bias = None if square and window >= S else sliding_window_bias(q_bhtd, S, window, positions_bt)
    # the kernel takes the numbers of a head for neighbours in memory, which rotary leaves them, but for heads of two
    q_bhtd, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_bhtd, k, v))
    return _FlashWithSinks.apply(q_bhtd, k, v, sinks_h, bias)
