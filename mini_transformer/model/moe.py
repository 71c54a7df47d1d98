"""Router and experts: mixture of experts with the clamped SwiGLU of GPT-OSS. One expert is a dense model.

Axes: N tokens (batch and time in one), C channels, E experts, K chosen experts, F hidden.
"""

import torch
from torch import Tensor, nn

from mini_transformer.config import ModelConfig

ALPHA = 1.702  # fixed in GPT-OSS and in every reader of its checkpoints
LIMIT = 7.0


class Router(nn.Module):
    """Chooses K experts per token from its logits, and weighs them by the softmax over those K.

    `load` counts the tokens (E) that each expert took while training, for the balance rule, which takes it away.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.experts_per_token = config.experts_per_token
        self.weight = nn.Parameter(torch.empty(config.n_experts, config.n_embd))
        self.bias = nn.Parameter(torch.empty(config.n_experts))
        self.tokens_per_expert: Tensor | None = None

    def forward(self, x_nc: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (N, K) and chosen experts (N, K)."""
        # float32 even under autocast: a rounded logit can choose another expert
        with torch.autocast(x_nc.device.type, enabled=False):
            logits_ne = torch.nn.functional.linear(x_nc.float(), self.weight.float(), self.bias.float())
        top_nk, chosen_nk = logits_ne.topk(self.experts_per_token, dim=-1)
        if self.training:
            counts_e = torch.bincount(chosen_nk.flatten(), minlength=len(self.weight))
            self.tokens_per_expert = counts_e if self.tokens_per_expert is None else self.tokens_per_expert + counts_e
        return top_nk.softmax(dim=-1), chosen_nk


def clamped_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """(up + 1) * gate * sigmoid(alpha * gate), with gate at most LIMIT and up within plus or minus LIMIT."""
    gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
    return (up + 1) * gate * torch.sigmoid(ALPHA * gate)


class GatherRows(torch.autograd.Function):
    """Rows of x in a new order, each taken `copies` times in all.

    `rows` says which row of x comes where; `back` lists, for each row of x in turn, where its copies went. The
    backward pass is then a gather as well, which is repeatable and faster than the scattered sum of plain indexing.
    """

    @staticmethod
    def forward(ctx, x, rows, back, copies):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(back)
        ctx.copies = copies
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (back,) = ctx.saved_tensors
        grad = grad.index_select(0, back)
        return grad.view(-1, ctx.copies, grad.shape[-1]).sum(1) if ctx.copies > 1 else grad, None, None, None


class Experts(nn.Module):
    """E feed-forward networks, side by side.

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

    def one(self, expert: int, x_nc: Tensor) -> Tensor:
        """What one expert makes of some tokens, (N, C)."""
        gate_up = torch.addmm(self.gate_up_proj_bias[expert], x_nc, self.gate_up_proj[expert])
        hidden = clamped_swiglu(*gate_up.chunk(2, dim=-1))
        return torch.addmm(self.down_proj_bias[expert], hidden, self.down_proj[expert])

    def reference(self, x_nc: Tensor, weights_nk: Tensor, chosen_nk: Tensor) -> Tensor:
        """The mixture written out: every expert reads every token, and what was not chosen weighs nothing."""
        out = torch.zeros_like(x_nc)
        for expert in range(len(self.down_proj)):
            weight_n = (weights_nk * (chosen_nk == expert)).sum(-1, keepdim=True)
            out = out + weight_n * self.one(expert, x_nc)
        return out

    def forward(self, x_nc: Tensor, weights_nk: Tensor, chosen_nk: Tensor) -> Tensor:
        """The same, each expert reading only its own tokens: sorted by expert once, computed slice by slice."""
        E, K = len(self.down_proj), chosen_nk.shape[1]
        if E == 1:
            return self.one(0, x_nc)
        if len(x_nc) == 1:  # writing, token by token: nothing to sort
            parts_kc = torch.cat([self.one(expert, x_nc) for expert in chosen_nk[0].tolist()])
            return weights_nk.to(parts_kc.dtype) @ parts_kc
        order = chosen_nk.flatten().argsort(stable=True)  # slot n * K + k of each sorted row
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)  # sorted row of each slot
        counts = torch.bincount(chosen_nk.flatten(), minlength=E).tolist()
        rows = GatherRows.apply(x_nc, order // K, place, K)
        parts = [self.one(e, part) for e, part in enumerate(rows.split(counts)) if len(part)]
        slots = GatherRows.apply(torch.cat(parts), place, order, 1)
        return (slots.view(-1, K, x_nc.shape[-1]) * weights_nk.unsqueeze(-1).to(slots.dtype)).sum(1)


class MixtureOfExperts(nn.Module):
    """The feed-forward half of a block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config)

    def forward(self, x_btc: Tensor) -> Tensor:
        x_nc = x_btc.flatten(0, 1)
        return self.experts(x_nc, *self.router(x_nc)).view(x_btc.shape)
