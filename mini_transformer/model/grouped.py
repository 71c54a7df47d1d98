"""Experts on a GPU, where nothing may wait for the device: no count of tokens ever comes to the host.

The loop of `moe.Experts` is the reference. Axes: N tokens, C channels, E experts, K chosen experts per token, F hidden
size of an expert, R = N * K rows, sorted by expert.
"""

import torch
from torch import Tensor

from mini_transformer.model.swiglu import clamped_swiglu

PROVED = False  # whether `training.proofs` has seen the products of this process's GPU
MANY = 32  # experts of which a few tokens do not choose the most
FEW = 64  # tokens of which all experts may as well be computed: the weights are read anyway


def suits(x_nc: Tensor, *sizes: int) -> torch.dtype | None:
    """The type in which `chosen_experts` computes; `None` where PyTorch has no grouped product of these sizes."""
    if not PROVED or x_nc.device.type != "cuda" or not torch.is_autocast_enabled("cuda"):
        return None
    dtype = torch.get_autocast_dtype("cuda")
    whole = all(size % 8 == 0 for size in sizes)  # rows of whole 16 bytes
    return dtype if dtype is torch.bfloat16 and whole else None


def chosen_experts(
    rows_rc: Tensor, expert_r: Tensor, gate_up_ecf: Tensor, gate_up_bias_ef: Tensor, down_efc: Tensor, bias_ec: Tensor
) -> Tensor:
    """Each row through its own expert, by products of all experts at once: (R, C)."""
    dtype, experts = rows_rc.dtype, torch.arange(len(down_efc), device=rows_rc.device)
    one_hot_re = expert_r.unsqueeze(1) == experts
    ends_e = one_hot_re.sum(0).cumsum(0).to(torch.int32)
    one_hot_re = one_hot_re.to(dtype)

    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = torch._grouped_mm(x, weight.to(dtype), offs=ends_e)
        return AddBias.apply(out, bias.to(dtype), expert_r, one_hot_re)

    gate_up = product(rows_rc, gate_up_ecf, gate_up_bias_ef)
    return product(clamped_swiglu(*gate_up.chunk(2, dim=-1)), down_efc, bias_ec)


class AddBias(torch.autograd.Function):
    """`x + bias[expert]`, whose gradient for the biases is a product: that of a look-up is added row by row."""

    @staticmethod
    def forward(ctx, x_rf, bias_ef, expert_r, one_hot_re):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(one_hot_re)
        return x_rf + bias_ef.index_select(0, expert_r)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (one_hot_re,) = ctx.saved_tensors
        return grad, one_hot_re.T @ grad, None, None


def suits_all(x_nc: Tensor, experts: int, experts_per_token: int) -> bool:
    """Whether `all_experts` is the way: few tokens, or little to save where there is no grouped product."""
    if x_nc.device.type != "cuda" or experts > MANY:
        return False
    return len(x_nc) <= FEW or (experts <= 2 * experts_per_token and not (PROVED and torch.is_autocast_enabled("cuda")))


def all_experts(
    x_nc: Tensor,
    weights_nk: Tensor,
    chosen_nk: Tensor,
    gate_up_ecf: Tensor,
    gate_up_bias_ef: Tensor,
    down_efc: Tensor,
    bias_ec: Tensor,
) -> Tensor:
    """The mixture (N, C), every expert computing every token, with weight 0 where it was not chosen."""
    E = len(down_efc)
    weights_ne = weights_nk.new_zeros(len(x_nc), E).scatter(1, chosen_nk, weights_nk)
    gate_up = torch.baddbmm(gate_up_bias_ef.unsqueeze(1), x_nc.expand(E, -1, -1), gate_up_ecf)
    out_enc = torch.baddbmm(bias_ec.unsqueeze(1), clamped_swiglu(*gate_up.chunk(2, dim=-1)), down_efc)
    return torch.einsum("ne,enc->nc", weights_ne.to(out_enc.dtype), out_enc)
