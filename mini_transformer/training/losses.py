"""What training minimises. A loss is a callable: model and batch in, the sum over its predictions and their number out.

Sums and numbers, not means: the trainer divides by the number over all micro-batches and ranks.
"""

from typing import Protocol

from torch import Tensor, nn


class Loss(Protocol):
    """See the module."""

    def __call__(self, model: nn.Module, inputs_bt: Tensor, targets_bt: Tensor) -> tuple[Tensor, int]:
        """The sum of the losses (a scalar, in nats) and the number of predicted tokens."""


def cross_entropy_sum(model: nn.Module, inputs_bt: Tensor, targets_bt: Tensor) -> tuple[Tensor, int]:
    """The sum of -log p of the targets, in nats, in float32."""
    return model(inputs_bt, targets_bt=targets_bt), targets_bt.numel()
