"""Mixture of experts: the router and the experts with the clamped SwiGLU of GPT-OSS. One expert is a dense model.

Axes: N tokens (batch and time in one), C channels, E experts, K chosen experts per token, F hidden size of an expert.
"""

import threading
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from mini_transformer.config import ModelConfig
from mini_transformer.model import grouped
from mini_transformer.model.swiglu import clamped_swiglu

_counting = threading.Lock()


class Router(nn.Module):
    """Chooses the K experts with the highest logits for each token, and weighs them by the softmax over those K.

    In training, `tokens_per_expert` (E) counts the tokens that each expert got since the balancing rule last reset it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.experts_per_token = config.experts_per_token
        self.weight = nn.Parameter(torch.empty(config.n_experts, config.n_embd))
        self.bias = nn.Parameter(torch.empty(config.n_experts))
        if config.n_experts == 1:  # no choice, so no gradient, which DDP and FSDP would wait for
            self.requires_grad_(False)
        self.tokens_per_expert: Tensor | None = None

    def forward(self, x_nc: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (N, K) and chosen experts (N, K)."""
        # float32 even under autocast: a rounded logit can choose another expert
        with torch.autocast(x_nc.device.type, enabled=False):
            logits_ne = torch.nn.functional.linear(x_nc.float(), self.weight.float(), self.bias.float())
        top_nk, chosen_nk = logits_ne.topk(self.experts_per_token, dim=-1)
        if self.training:
            self.count(tokens_per_expert(chosen_nk, len(self.weight)))
        return top_nk.softmax(dim=-1), chosen_nk

    def count(self, counts_e: Tensor) -> None:
        """Add to `tokens_per_expert`, in training; several threads may, on a CPU."""
        if not self.training:
            return
        with _counting if counts_e.device.type == "cpu" else nullcontext():
            if self.tokens_per_expert is None:
                self.tokens_per_expert = torch.zeros_like(counts_e)
            self.tokens_per_expert += counts_e  # in place: a CUDA graph goes on adding to this tensor


def tokens_per_expert(chosen_nk: Tensor, experts: int) -> Tensor:
    """How many tokens chose each expert (E), int64. On a GPU `bincount` would wait for the device."""
    if chosen_nk.device.type == "cpu":
        return torch.bincount(chosen_nk.flatten(), minlength=experts)
    return (chosen_nk.unsqueeze(-1) == torch.arange(experts, device=chosen_nk.device)).sum((0, 1))


class GatherRows(torch.autograd.Function):
    """`x[rows]`, where `rows` holds every row of x exactly `copies` times, in any order.

    `inverse` lists, for each row of x in turn, where its copies went. So the backward pass is a gather too, which is
    deterministic and faster than the scattered sum of plain indexing.
    """

    @staticmethod
    def forward(ctx, x, rows, inverse, copies):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inverse)
        ctx.copies = copies
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (inverse,) = ctx.saved_tensors
        grad = grad.index_select(0, inverse)
        return grad.view(-1, ctx.copies, grad.shape[-1]).sum(1) if ctx.copies > 1 else grad, None, None, None


def sorted_slots(chosen_nk: Tensor, experts: int) -> Tensor:
    """The slots n * K + k in the order of their experts, stable. Sorting bytes takes a quarter of the passes."""
    slots = chosen_nk.flatten()
    return (slots.to(torch.uint8) if experts <= 256 else slots).argsort(stable=True)


class Experts(nn.Module):
    """E feed-forward networks; each token goes through its K chosen ones.

    In memory the gate half of `gate_up_proj` comes before the up half, so that each is one slice; on disk GPT-OSS
    interleaves them (see `model.pretrained`).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, C, F = config.n_experts, config.n_embd, config.expert_hidden
        self.gate_up_proj = nn.Parameter(torch.empty(E, C, 2 * F))
        self.gate_up_proj_bias = nn.Parameter(torch.empty(E, 2 * F))
        self.down_proj = nn.Parameter(torch.empty(E, F, C))
        self.down_proj_bias = nn.Parameter(torch.empty(E, C))

    def expert_forward(self, expert: int, x_nc: Tensor) -> Tensor:
        """The output (N, C) of one expert."""
        gate_up = torch.addmm(self.gate_up_proj_bias[expert], x_nc, self.gate_up_proj[expert])
        hidden = clamped_swiglu(*gate_up.chunk(2, dim=-1))
        return torch.addmm(self.down_proj_bias[expert], hidden, self.down_proj[expert])

    def forward(self, x_nc: Tensor, weights_nk: Tensor, chosen_nk: Tensor) -> Tensor:
        """The mixture (N, C), each expert computing only its own tokens: sorted by expert once, then slice by slice."""
        E, K = len(self.down_proj), chosen_nk.shape[1]
        if E == 1:
            return self.expert_forward(0, x_nc)
        if grouped.suits_all(x_nc, E, K):
            return grouped.all_experts(x_nc, weights_nk, chosen_nk, *self.parameters())
        if len(x_nc) == 1:  # generating token by token: nothing to sort
            parts_kc = torch.cat([self.expert_forward(expert, x_nc) for expert in chosen_nk[0].tolist()])
            return weights_nk.to(parts_kc.dtype) @ parts_kc
        order = sorted_slots(chosen_nk, E)  # slot n * K + k of each sorted row
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)  # sorted row of each slot
        if dtype := grouped.suits(x_nc, *self.down_proj.shape[1:]):
            rows = GatherRows.apply(x_nc.to(dtype), order // K, inverse, K)
            sorted_rows = grouped.chosen_experts(rows, chosen_nk.flatten()[order], *self.parameters())
        else:
            counts = tokens_per_expert(chosen_nk, E).tolist()
            rows = GatherRows.apply(x_nc, order // K, inverse, K)
            parts = [self.expert_forward(e, part) for e, part in enumerate(rows.split(counts)) if len(part)]
            sorted_rows = torch.cat(parts)
        slots = GatherRows.apply(sorted_rows, inverse, order, 1)
        return (slots.view(-1, K, x_nc.shape[-1]) * weights_nk.unsqueeze(-1).to(slots.dtype)).sum(1)


class MixtureOfExperts(nn.Module):
    """The feed-forward half of a block: (B, T, C) to (B, T, C)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config)

    def forward(self, x_btc: Tensor) -> Tensor:
        x_nc = x_btc.flatten(0, 1)
        return self.experts(x_nc, *self.router(x_nc)).view(x_btc.shape)
