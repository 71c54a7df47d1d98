"""The validation loss: the validation stream once, in blocks side by side, at most so many batches of it.

Whole batches go to the ranks in turn, so that each is computed as one process alone would.
"""

from collections.abc import Callable

import torch

from mini_transformer.data.stream import TokenStream, validation_batches
from mini_transformer.model.decoder import Decoder
from mini_transformer.runtime import rank, world_size
from mini_transformer.training.distributed import sum_over_ranks
from mini_transformer.training.plan import flops_per_token

MAX_FIRST_EVALUATION = 1e12  # floating-point operations, on a CPU
LossSum = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, int]]  # of inputs and targets (B, T)


@torch.no_grad()
def validate(loss_sum: LossSum, stream: TokenStream, batch_size: int, block_size: int, max_batches: int) -> float:
    """The mean loss of the model that `loss_sum` has, in nats per predicted token, over all ranks."""
    total, tokens = 0.0, 0
    ranks = rank(), world_size()
    for inputs_bt, targets_bt, counts in validation_batches(stream, batch_size, block_size, max_batches, *ranks):
        loss, count = loss_sum(inputs_bt, targets_bt)  # under FSDP all ranks must compute as often
        if counts:
            total, tokens = total + loss.item(), tokens + count
    total, tokens = sum_over_ranks(torch.tensor([total, tokens], dtype=torch.float64)).tolist()
    return total / tokens


def is_quick(model: Decoder, tokens: int) -> bool:
    """Whether to measure a model before its first step: not where that takes long and delays the first loss."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    return not on_cpu or flops_per_token(model.config) / 3 * tokens <= MAX_FIRST_EVALUATION
