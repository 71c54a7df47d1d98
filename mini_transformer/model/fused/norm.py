"""What stands at both ends of a half: RMSNorm of rows (N, C), with its gradients, and the sum with the stream."""

import torch
from torch import Tensor


def normalise(x_nc: Tensor, weight_c: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / rms(x) * weight (N, C), and 1 / rms(x) (N, 1)."""
    inverse_n1 = torch.linalg.vector_norm(x_nc, dim=-1, keepdim=True).square_().div_(x_nc.shape[-1]).add_(eps).rsqrt_()
    return (x_nc * inverse_n1).mul_(weight_c), inverse_n1


def normalise_backward(
    grad_nc: Tensor, x_nc: Tensor, weight_c: Tensor, inverse_n1: Tensor, residual_nc: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gradients of x, that of the residual stream added, and of the weight. `grad_nc` is overwritten."""
    product_nc = grad_nc * x_nc
    coefficient_n1 = (product_nc @ weight_c[:, None]).mul_(inverse_n1.pow(3)).div_(-x_nc.shape[-1])
    d_weight_c = inverse_n1.t().mm(product_nc)[0]
    d_x = grad_nc.mul_(weight_c).mul_(inverse_n1)
    if residual_nc is not None:
        d_x.add_(residual_nc)
    return d_x.addcmul_(x_nc, coefficient_n1), d_weight_c


def add_branch(x: Tensor, y_nc: Tensor, mask: Tensor | None) -> Tensor:
    """x + mask * y, of the shape of x and no view, which FSDP would not want."""
    out = torch.empty_like(x)
    if mask is None:
        torch.add(x.flatten(0, 1), y_nc, out=out.flatten(0, 1))
    else:
        torch.addcmul(x.flatten(0, 1), y_nc, mask.flatten(0, 1), out=out.flatten(0, 1))
    return out
