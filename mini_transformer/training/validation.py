"""The validation loss: the validation stream once, in blocks side by side, at most so many batches of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mini_transformer.data.prepare import TrainingData
from mini_transformer.data.stream import validation_batches
from mini_transformer.training.distributed import sum_over_ranks

LossSum = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, int]]  # of inputs and targets (B, T)


@dataclass(frozen=True)
class ValidationLoss:
    """In nats per token, and in bits per character of the text."""

    loss: float
    bits_per_character: float


def tokens_per_character(data: TrainingData) -> float:
    """Of the validation text."""
    return (len(data.validation) - 1) / data.validation_characters


def validate(
    loss_sum: LossSum, data: TrainingData, batch_size: int, block_size: int, max_batches: int
) -> ValidationLoss:
    """Measure the validation text with the model that `loss_sum` has."""
    total, tokens = 0.0, 0
    with torch.no_grad():
        for inputs_bt, targets_bt in validation_batches(data.validation, batch_size, block_size, max_batches):
            loss, count = loss_sum(inputs_bt, targets_bt)
            total, tokens = total + loss.item(), tokens + count
    total, tokens = sum_over_ranks(torch.tensor([total, tokens], dtype=torch.float64)).tolist()
    return ValidationLoss(total / tokens, total / tokens * tokens_per_character(data) / math.log(2))
