"""The type in which the fused functions multiply matrices: float32, or bfloat16 under autocast.

With bfloat16 the results are bfloat16, too, while sums over rows, the residual stream and attention stay float32.
"""

from typing import Any

import torch
from torch import Tensor


def apply(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """Apply a function of this package, whose first input is the type of its products."""
    products = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    with torch.autocast("cpu", enabled=False):
        return function.apply(products, *inputs)


def add_product_(total: Tensor, a: Tensor, b: Tensor, alpha: float = 1.0) -> None:
    """total += alpha * a @ b, where total is float32 whatever a and b are."""
    if a.dtype is torch.float32:
        total.addmm_(a, b, alpha=alpha)
    else:
        total.add_(a.mm(b), alpha=alpha)
