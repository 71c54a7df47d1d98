"""The sum of -log p of the targets after the last norm and the head, as one node of autograd."""

from typing import Any

import torch
from torch.nn.functional import log_softmax

from mini_transformer.model.fused.norm import normalise, normalise_backward
from mini_transformer.model.fused.products import add_product_

LOGITS = 2**20  # that are worked on at once, in the cache


class HeadLoss(torch.autograd.Function):
    """Takes x (B, T, C), targets (B, T), the weights of norm (C) and head (V, C); returns a scalar, in nats.

    The gradients are made on the way, chunk by chunk: the logits of all tokens never exist at once.
    """

    @staticmethod
    def forward(ctx: Any, products, x, targets, eps, norm, head_w):  # type: ignore[no-untyped-def]
        wanted = any(ctx.needs_input_grad)
        normed, inverse = normalise(x.flatten(0, 1), norm, eps)
        normed, d_head_w, head_w = normed.to(products), torch.zeros_like(head_w), head_w.to(products)
        d_normed = torch.empty_like(normed)
        total, count = x.new_zeros(()), max(16, LOGITS // len(head_w))
        parts = zip(normed.split(count), targets.reshape(-1, 1).split(count), d_normed.split(count), strict=True)
        for part, targets_n1, d_part in parts:
            log_p = log_softmax(part.mm(head_w.t()).float(), dim=-1)
            total -= log_p.gather(1, targets_n1).sum()
            if wanted:
                d_logits = log_p.exp_().scatter_add_(1, targets_n1, log_p.new_full(targets_n1.shape, -1.0)).to(products)
                add_product_(d_head_w, d_logits.t(), part)
                torch.mm(d_logits, head_w, out=d_part)
        if wanted:
            d_x, d_norm = normalise_backward(d_normed.float(), x.flatten(0, 1), norm, inverse)
            ctx.gradients = d_x.view(x.shape), d_norm, d_head_w
        return total

    @staticmethod
    def backward(ctx: Any, grad):  # type: ignore[no-untyped-def]
        d_x, d_norm, d_head_w = (gradient.mul_(grad) for gradient in ctx.gradients)
        ctx.gradients = None
        return None, d_x, None, None, d_norm, d_head_w
