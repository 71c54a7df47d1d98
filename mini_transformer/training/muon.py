"""Muon for the matrices of the blocks, AdamW for all else.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) steps along the momentum with all of its singular values
made about 1, so that directions which gradients rarely take are learnt as fast as the others. `torch.optim.Muon` takes
one matrix at a time, and no experts, which are several in one tensor.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from mini_transformer.training.parallel import add_to, whole

# a x + b x^3 + c x^5, one after the other; the second brings what the first makes of 0.085 to 1 as near to 1 as can be
# (Amsel et al. 2025, arXiv 2505.16932)
POLYNOMIALS = ((5.9024, -15.0393, 10.6444), (2.2087, -1.5851, 0.4098))
ABOVE = 1.01  # beyond 1 the first one grows fast
MOMENTUM = 0.95
SCALE = 0.2  # a step's root mean square, near AdamW's, so that one rate suits both (Liu et al. 2025, arXiv 2502.16982)
TOGETHER = 2**22  # so many numbers are made orthogonal at once


def orthogonal(x_nij: Tensor) -> Tensor:
    """Matrices with the singular vectors of these, and singular values of 0.9 to 1.1.

    What was below a sixteenth of `bound` stays smaller.
    """
    if tall := x_nij.shape[-2] > x_nij.shape[-1]:
        x_nij = x_nij.mT
    x_nij = x_nij / x_nij.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # powers of small numbers would be zero
    for i, (a, b, c) in enumerate(POLYNOMIALS):
        square_nii = x_nij @ x_nij.mT
        if i == 0:
            size_n11 = bound(square_nii @ square_nii).to(x_nij.dtype)
            x_nij, square_nii = x_nij / size_n11, square_nii / size_n11**2
        polynomial_nii = torch.baddbmm(square_nii, square_nii, square_nii, beta=b, alpha=c)
        x_nij = torch.baddbmm(x_nij, polynomial_nii, x_nij, beta=a)
    return x_nij.mT if tall else x_nij


def bound(fourth_nii: Tensor) -> Tensor:
    """A little more than the eighth root (N, 1, 1) of the sum of the eighth powers of singular values.

    So it is above the largest, and much nearer to it than the root of their squares, which costs a round more.
    `fourth_nii`: (X X^T)^2.
    """
    return ABOVE * fourth_nii.float().norm(dim=(-2, -1), keepdim=True).clamp(min=1e-20) ** 0.25


class Muon(torch.optim.AdamW):
    """AdamW but for groups that have a `momentum`: their tensors are matrices by the last two axes.

    Under FSDP each rank makes whole matrices orthogonal, and takes its part of them. `precision`: of the products.
    """

    def __init__(self, groups: list[dict[str, Any]], precision: torch.dtype = torch.float32, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step; without a `closure`."""
        assert closure is None
        groups = self.param_groups
        for group in groups:
            if "momentum" in group:
                self._step(**group)
        self.param_groups = [group for group in groups if "momentum" not in group]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _step(self, params: list[Tensor], lr: float, weight_decay: float, momentum: float, **_: Any) -> None:
        for same in of_one_shape(p for p in params if p.grad is not None):
            rows, columns = same[0].shape[-2:]
            updates = torch.stack([whole(self._update(p, momentum)) for p in same])
            steps = orthogonal(updates.flatten(0, -3).to(self.precision)).to(updates.dtype).reshape_as(updates)
            for parameter, step in zip(same, steps, strict=True):
                parameter.mul_(1 - lr * weight_decay)
                add_to(parameter, -lr * SCALE * max(rows, columns) ** 0.5 * step)

    def _update(self, parameter: Tensor, momentum: float) -> Tensor:
        """Nesterov's: the gradient and what the momentum has become by it."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:  # AdamW looks for a step when it takes up what was saved
            state.update(step=torch.tensor(0.0), momentum_buffer=torch.zeros_like(parameter))
        state["step"] += 1
        return gradient.lerp(state["momentum_buffer"].lerp_(gradient, 1 - momentum), momentum)


def of_one_shape(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters, as many of one shape together as are made orthogonal at once."""
    by_shape = defaultdict[torch.Size, list[Tensor]](list)
    for parameter in parameters:
        by_shape[parameter.shape].append(parameter)
    for same in by_shape.values():
        count = max(1, TOGETHER // same[0].numel())
        yield from (same[i : i + count] for i in range(0, len(same), count))
