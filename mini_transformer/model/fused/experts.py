"""x + dropout(experts(norm(x))), as one node of autograd.

The clamped SwiGLU is (up + 1) * gate * sigmoid(alpha * gate) = (alpha * (up + 1)) * silu(alpha * gate) / alpha ** 2,
so the product that makes gate and up scales both by alpha, and adds 1 to up with its bias; the division is part of the
next product. Rows are clamped, and their gradients cut off, only where an activation has reached a limit.
"""

from typing import Any

import torch
from torch.nn.functional import embedding_bag, silu

from mini_transformer.model.fused.norm import add_branch, normalise, normalise_backward
from mini_transformer.model.fused.products import add_product_
from mini_transformer.model.swiglu import SWIGLU_ALPHA, SWIGLU_LIMIT

CHUNK = 1024  # rows of an expert that are worked on at once, in the cache
GRAIN = 32  # rows of a part are a multiple of it: oneDNN, which multiplies bfloat16, makes a kernel for each new shape
ALPHA = SWIGLU_ALPHA
GATE_MAX, UP_MIN, UP_MAX = ALPHA * SWIGLU_LIMIT, ALPHA * (1 - SWIGLU_LIMIT), ALPHA * (1 + SWIGLU_LIMIT)
hardtanh_backward, silu_backward = torch.ops.aten.hardtanh_backward, torch.ops.aten.silu_backward


def chunks(counts_e: list[int]) -> tuple[list[int], list[int]]:
    """The rows of all experts in chunks: the expert of each, and its number of rows."""
    experts, sizes = [], []
    for expert, count in enumerate(counts_e):
        parts = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
        experts += [expert] * len(parts)
        sizes += parts
    return experts, sizes


class ExpertsHalf(torch.autograd.Function):
    """Takes x (B, T, C), `mask` (B, T, C), which dropout multiplies by, or None, and what the layer consists of.

    Returns the new x, and the tokens that each expert got (E).
    """

    @staticmethod
    def forward(ctx: Any, products, x, mask, eps, K, norm, router_w, router_b, gate_up_w, gate_up_b, down_w, down_b):  # type: ignore[no-untyped-def]
        C, (E, F) = x.shape[-1], down_w.shape[:2]
        x_nc = x.flatten(0, 1)
        N = len(x_nc)
        normed, inverse = normalise(x_nc, norm, eps)
        if E == 1:
            counts, chosen, weights, tokens, slots = torch.tensor([N]), None, None, None, None
        else:
            top, chosen = torch.addmm(router_b, normed, router_w.t()).topk(K, dim=-1)
            weights = top.softmax(dim=-1)  # (N, K)
            counts = torch.bincount(chosen.flatten(), minlength=E)
            order = chosen.flatten().argsort(stable=True)
            padded = (counts + GRAIN - 1) // GRAIN * GRAIN
            shift_e = (padded - counts).cumsum(0) - (padded - counts)
            rows = torch.arange(len(order)) + shift_e[chosen.flatten()[order]]
            tokens = order.new_zeros(int(padded.sum())).index_copy_(0, rows, order // K)  # (R): the token of each row
            slots = torch.empty_like(order).index_copy_(0, order, rows).view(N, K)  # its rows
        experts, sizes = chunks((counts if tokens is None else padded).tolist())
        gate_up, y = (x.new_empty(sum(sizes), width, dtype=products) for width in (2 * F, C))
        biases = gate_up_b.clone()
        biases[:, F:] += 1
        normed, gate_up_w, down_w = normed.to(products), gate_up_w.to(products), down_w.to(products)
        biases, down_b = biases.to(products), down_b.to(products)
        sources = normed.split(sizes) if tokens is None else tokens.split(sizes)
        clamped = []
        for e, source, gate_up_part, y_part in zip(experts, sources, gate_up.split(sizes), y.split(sizes), strict=True):
            inputs = source if tokens is None else normed.index_select(0, source)
            torch.addmm(biases[e], inputs, gate_up_w[e], beta=ALPHA, alpha=ALPHA, out=gate_up_part)
            gate, up = gate_up_part.chunk(2, dim=-1)
            low, high = gate_up_part.aminmax()
            clamped.append(not (low > UP_MIN and high < GATE_MAX))
            if clamped[-1]:
                gate.clamp_(max=GATE_MAX)
                up.clamp_(UP_MIN, UP_MAX)
            torch.addmm(down_b[e], silu(gate).mul_(up), down_w[e], alpha=ALPHA**-2, out=y_part)
        if slots is None:
            mixed = y
        else:
            shares = weights.to(products)  # type: ignore[union-attr]
            mixed = embedding_bag(slots, y, mode="sum", per_sample_weights=shares)
        out = add_branch(x, mixed, mask)
        ctx.chunks = experts, sizes, clamped
        kept = (None if slots is None else y, chosen, weights, tokens, slots)
        ctx.save_for_backward(x, mask, inverse, gate_up, *kept, norm, router_w, gate_up_w, down_w)
        ctx.mark_non_differentiable(counts)
        return out, counts

    @staticmethod
    def backward(ctx: Any, grad, _):  # type: ignore[no-untyped-def]
        x, mask, inverse, gate_up, y, chosen, weights, tokens, slots, *parameters = ctx.saved_tensors
        norm, router_w, gate_up_w, down_w = parameters
        experts, sizes, clamped = ctx.chunks
        x_nc, grad_nc = x.flatten(0, 1), grad.flatten(0, 1)
        R, (E, F, C), products = len(gate_up), down_w.shape, gate_up.dtype
        d_y_nc = (grad_nc if mask is None else grad_nc * mask.flatten(0, 1)).to(products)
        normed_nc = (x_nc * inverse).mul_(norm)
        normed = normed_nc.to(products)
        d_gate_up_w, d_down_w = x.new_zeros(gate_up_w.shape), x.new_zeros(down_w.shape)
        d_gate_up_b, d_down_b = x.new_zeros(E, 2 * F), x.new_zeros(E, C)
        d_rows, d_gate_up = (x.new_empty(rows, width, dtype=products) for rows, width in ((R, C), (max(sizes), 2 * F)))
        if tokens is not None:
            # zero for the rows that only fill up a part: no gradient comes from there
            weights_r1 = weights.new_zeros(R, 1).index_copy_(0, slots.flatten(), weights.view(-1, 1)).to(products)
            d_weights_r = weights.new_empty(R)
        start = 0
        for e, size, is_clamped in zip(experts, sizes, clamped, strict=True):
            rows = slice(start, start := start + size)
            if tokens is None:
                inputs, d_y = normed[rows], d_y_nc[rows]
            else:
                inputs, d_y = normed.index_select(0, tokens[rows]), d_y_nc.index_select(0, tokens[rows])
                torch.sum(d_y * y[rows], dim=-1, dtype=torch.float32, out=d_weights_r[rows])
                d_y.mul_(weights_r1[rows])
            gate, up = gate_up[rows].chunk(2, dim=-1)
            d_gate_up_part, d_part = d_gate_up[:size], d_rows[rows]
            d_gate, d_up = d_gate_up_part.chunk(2, dim=-1)
            activated = silu(gate)
            hidden = activated * up
            add_product_(d_down_w[e], hidden.t(), d_y, ALPHA**-2)
            d_down_b[e] += d_y.sum(0, dtype=torch.float32)
            torch.addmm(hidden, d_y, down_w[e].t(), beta=0, alpha=ALPHA**-2, out=hidden)  # now its gradient
            torch.mul(hidden, activated, out=d_up)
            silu_backward(hidden.mul_(up), gate, grad_input=d_gate)
            if is_clamped:
                d_up.copy_(hardtanh_backward(d_up, up, UP_MIN, UP_MAX))
                d_gate.copy_(hardtanh_backward(d_gate, gate, float("-inf"), GATE_MAX))
            add_product_(d_gate_up_w[e], inputs.t(), d_gate_up_part, ALPHA)
            d_gate_up_b[e].add_(d_gate_up_part.sum(0, dtype=torch.float32), alpha=ALPHA)
            torch.addmm(d_part, d_gate_up_part, gate_up_w[e].t(), beta=0, alpha=ALPHA, out=d_part)
        d_router_w = d_router_b = None
        if slots is None:
            d_normed = d_rows.float()
        else:
            d_weights = d_weights_r[slots]
            d_top = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True))
            d_logits = x.new_zeros(len(x_nc), E).scatter_(1, chosen, d_top)
            d_normed = embedding_bag(slots, d_rows, mode="sum").float().addmm_(d_logits, router_w)
            d_router_w, d_router_b = d_logits.t().mm(normed_nc), d_logits.sum(0)
        d_x, d_norm = normalise_backward(d_normed, x_nc, norm, inverse, grad_nc)
        grads = (d_norm, d_router_w, d_router_b, d_gate_up_w, d_gate_up_b, d_down_w, d_down_b)
        return None, d_x.view(x.shape), None, None, None, *grads
