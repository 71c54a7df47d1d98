"""Grouped-query attention with learned sinks and a sliding window, as in GPT-OSS.

Axes: B batch, H query heads, G key/value heads, T new tokens (queries), S all tokens (keys), D head size, C channels.

A sink is one learned score per head that takes part in the softmax and is then dropped, so that a head may attend to
nothing (Xiao et al. 2023, arXiv 2309.17453; GPT-OSS model card, arXiv 2508.10925). With o and lse = log-sum-exp of the
plain softmax, the result is o * sigmoid(lse - sink).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mini_transformer.config import ModelConfig
from mini_transformer.model.kv_cache import KVCache
from mini_transformer.model.rotary import rotate


def sliding_window_mask(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """Which keys a query sees, (T, S) of bool: itself and `window` - 1 tokens before it. Queries are the last keys."""
    i = torch.arange(keys - queries, keys, device=device)[:, None]
    j = torch.arange(keys, device=device)[None, :]
    return (j <= i) & (i - j < window)


def sdpa_reference(
    q_bhtd: Tensor, k_bgsd: Tensor, v_bgsd: Tensor, sinks_h: Tensor, window: int
) -> tuple[Tensor, Tensor]:
    """Attention written out: returns the result (B, H, T, D) and the probabilities (B, H, T, S), sink dropped."""
    B, H, T, D = q_bhtd.shape
    G, S = k_bgsd.shape[1:3]
    q = q_bhtd.reshape(B, G, H // G, T, D)
    scores = torch.einsum("bgmtd,bgsd->bgmts", q, k_bgsd).reshape(B, H, T, S).float() * D**-0.5
    if T > 1 or window < S:
        scores = scores.masked_fill(~sliding_window_mask(T, S, window, q.device), float("-inf"))
    sink = sinks_h.float().view(1, H, 1, 1).expand(B, H, T, 1)
    probabilities = torch.cat((scores, sink), dim=-1).softmax(dim=-1)[..., :-1].to(v_bgsd.dtype)
    out = torch.einsum("bgmts,bgsd->bgmtd", probabilities.reshape(B, G, H // G, T, S), v_bgsd)
    return out.reshape(B, H, T, D), probabilities


class _FlashWithSinks(torch.autograd.Function):
    """The CPU flash kernel, which also returns the log-sum-exp, corrected for the sinks in both directions.

    Autograd through o * sigmoid(lse - sink) would be wrong without a word: the kernel's lse carries no gradient. But
    the kernel's own backward is right if it is given the corrected output and the log-sum-exp with the sink inside.
    """

    @staticmethod
    def forward(ctx, q, k, v, sinks_h, causal, mask):  # type: ignore[no-untyped-def]
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=mask)
        lse = lse.view(q.shape[:3])
        sink = sinks_h.float()[:, None]
        out = out * torch.sigmoid(lse - sink).unsqueeze(-1).to(out.dtype)
        lse_with_sink = torch.logaddexp(lse, sink)
        ctx.save_for_backward(q, k, v, sinks_h, out, lse_with_sink, mask)
        ctx.causal = causal
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v, sinks_h, out, lse, mask = ctx.saved_tensors
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, ctx.causal, attn_mask=mask
        )
        sink_probability = torch.exp(sinks_h.float()[:, None] - lse)
        d_sinks = -(sink_probability * (grad * out).sum(-1, dtype=torch.float32)).sum((0, 2))
        return dq, dk, dv, d_sinks.to(sinks_h.dtype), None, None


def _sdpa_with_sink_key(q: Tensor, k: Tensor, v: Tensor, sinks_h: Tensor, seen_ts: Tensor) -> Tensor:
    """PyTorch's attention with one more key in front, whose score is the sink and whose value is zero (any device)."""
    k, v = F.pad(k, (0, 0, 1, 0)), F.pad(v, (0, 0, 1, 0))
    hidden = torch.zeros(seen_ts.shape, device=q.device, dtype=q.dtype).masked_fill(~seen_ts, float("-inf"))
    heads, queries = q.shape[1:3]
    sink = sinks_h.to(q.dtype).view(1, heads, 1, 1).expand(1, heads, queries, 1)
    bias = torch.cat((sink, hidden.expand(1, heads, *hidden.shape)), dim=-1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(q.shape[0], -1, -1, -1))


def sdpa_with_sinks(q_bhtd: Tensor, k_bgsd: Tensor, v_bgsd: Tensor, sinks_h: Tensor, window: int) -> Tensor:
    """The fastest attention at hand, (B, H, T, D); equal to `sdpa_reference`."""
    H, T = q_bhtd.shape[1:3]
    G, S = k_bgsd.shape[1:3]
    if T == 1:
        return sdpa_reference(q_bhtd, k_bgsd, v_bgsd, sinks_h, window)[0]
    k, v = (x.repeat_interleave(H // G, dim=1) if G < H else x for x in (k_bgsd, v_bgsd))
    if q_bhtd.device.type != "cpu":
        return _sdpa_with_sink_key(q_bhtd, k, v, sinks_h, sliding_window_mask(T, S, window, q_bhtd.device))
    mask = None
    if T < S or window < S:
        seen = sliding_window_mask(T, S, window, q_bhtd.device)
        mask = torch.zeros(seen.shape, dtype=q_bhtd.dtype).masked_fill(~seen, float("-inf"))
    return _FlashWithSinks.apply(q_bhtd, k, v, sinks_h, mask is None, mask)


class Attention(nn.Module):
    """One layer's attention: projections with biases, rotary positions, sinks, window."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.window = config.window(layer)
        query, key_value = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.q_proj = nn.Linear(config.n_embd, query)
        self.k_proj = nn.Linear(config.n_embd, key_value)
        self.v_proj = nn.Linear(config.n_embd, key_value)
        self.o_proj = nn.Linear(query, config.n_embd)
        self.sinks = nn.Parameter(torch.empty(config.n_head))

    def forward(self, x_btc: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None = None) -> Tensor:
        q, k, v = (
            proj(x_btc).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        return self.o_proj(sdpa_with_sinks(q, k, v, self.sinks, self.window).transpose(1, 2).flatten(2))
