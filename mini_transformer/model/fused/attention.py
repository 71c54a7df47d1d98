"""x + dropout(attention(norm(x))), as one node of autograd."""

from typing import Any

import torch
from torch import Tensor

from mini_transformer.model.fused.norm import add_branch, normalise, normalise_backward
from mini_transformer.model.sdpa import flash_backward, flash_forward, sliding_window_bias


def pair(rows: Tensor, head_dim: int) -> Tensor:
    """Rows (or biases) of a projection so that each element of a head stands beside the one it is rotated with."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def unpair(rows: Tensor, head_dim: int) -> Tensor:
    """The inverse of `pair`."""
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def rotate_(x_btp: Tensor, columns: int, turn: Tensor) -> Tensor:
    """Rotate the first columns, pairs of a complex number each, by (T, columns / 2) numbers; in place."""
    torch.view_as_complex(x_btp.unflatten(-1, (-1, 2)))[..., : columns // 2].mul_(turn)
    return x_btp


def heads(qkv_btp: Tensor, sizes: tuple[int, int, int], head_dim: int) -> list[Tensor]:
    """q, k and v, each (B, H, T, D): key/value heads are repeated for the query heads that share them."""
    parts = [p.unflatten(-1, (-1, head_dim)).transpose(1, 2) for p in qkv_btp.split(sizes, dim=-1)]
    repeats = sizes[0] // sizes[1]
    return parts if repeats == 1 else [parts[0], *(p.repeat_interleave(repeats, dim=1) for p in parts[1:])]


class AttentionHalf(torch.autograd.Function):
    """Takes x (B, T, C), `mask` (B, T, C), which dropout multiplies by, or None, and what the layer consists of."""

    @staticmethod
    def forward(ctx: Any, products, x, mask, rotary, window, eps, norm, q_w, q_b, k_w, k_b, v_w, v_b, o_w, o_b, sinks):  # type: ignore[no-untyped-def]
        B, T = x.shape[:2]
        sizes, D = (len(q_b), len(k_b), len(v_b)), len(q_b) // len(sinks)
        weight = torch.cat((pair(q_w, D), pair(k_w, D), v_w)).to(products)
        bias = torch.cat((pair(q_b, D), pair(k_b, D), v_b)).to(products)
        turn = torch.complex(*rotary).repeat(1, (sizes[0] + sizes[1]) // D)
        hidden = sliding_window_bias(x[:, None], T, window) if window < T else None
        x_nc = x.flatten(0, 1)
        normed, inverse = normalise(x_nc, norm, eps)
        qkv = torch.addmm(bias, normed.to(products), weight.t()).float().view(B, T, -1)
        q, k, v = heads(rotate_(qkv, sizes[0] + sizes[1], turn), sizes, D)
        attended, lse = flash_forward(q, k, v, sinks, hidden)  # (B, H, T, D), laid out as (B, T, H, D)
        o_w = o_w.to(products)
        y = torch.addmm(o_b.to(products), attended.transpose(1, 2).reshape(B * T, -1).to(products), o_w.t())
        out = add_branch(x, y, mask)
        ctx.sizes, ctx.head_dim = sizes, D
        ctx.save_for_backward(x, mask, weight, turn, hidden, norm, o_w, sinks, inverse, qkv, attended, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad):  # type: ignore[no-untyped-def]
        x, mask, weight, turn, hidden, norm, o_w, sinks, inverse, qkv, attended, lse = ctx.saved_tensors
        sizes, D, (B, T, C), products = ctx.sizes, ctx.head_dim, x.shape, weight.dtype
        x_nc, grad_nc = x.flatten(0, 1), grad.flatten(0, 1)
        d_y = (grad_nc if mask is None else grad_nc * mask.flatten(0, 1)).to(products)
        d_attended = d_y.mm(o_w).float().view(B, T, -1, D).transpose(1, 2)
        d_o_w = d_y.t().mm(attended.transpose(1, 2).reshape(B * T, -1).to(products)).float()
        d_o_b = d_y.sum(0, dtype=torch.float32)
        q, k, v = heads(qkv, sizes, D)
        *d_heads, d_sinks = flash_backward(d_attended, q, k, v, sinks, attended, lse, hidden)
        if sizes[0] != sizes[1]:
            d_heads[1:] = (d.unflatten(1, (sizes[1] // D, -1)).sum(2) for d in d_heads[1:])
        d_qkv = torch.cat([d.transpose(1, 2).flatten(2) for d in d_heads], dim=-1)
        d_qkv = rotate_(d_qkv, sizes[0] + sizes[1], turn.conj()).flatten(0, 1)
        d_q_b, d_k_b, d_v_b = d_qkv.sum(0).split(sizes)
        d_qkv, normed = d_qkv.to(products), (x_nc * inverse).mul_(norm).to(products)
        d_q_w, d_k_w, d_v_w = d_qkv.t().mm(normed).float().split(sizes)
        d_x, d_norm = normalise_backward(d_qkv.mm(weight).float(), x_nc, norm, inverse, grad_nc)
        d_qk = [unpair(d, D) for d in (d_q_w, d_q_b, d_k_w, d_k_b)]
        return None, d_x.view(B, T, C), None, None, None, None, d_norm, *d_qk, d_v_w, d_v_b, d_o_w, d_o_b, d_sinks
