"""Distillation: a run learns from the predictions of other models, its teachers, as well as from the text itself.

The loss is the cross entropy with a mixture of the text and a teacher's probabilities (Hinton et al. 2015, arXiv
1503.02531). A model learns more so even from a teacher of its own shape and text (Furlanello et al. 2018, "Born-Again
Neural Networks", arXiv 1805.04770). Of several teachers each step learns from the next: on average the gradients are
those of the teachers' mean probabilities, for the time that one of them takes.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mini_transformer.errors import UserError
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.pretrained import read_model
from mini_transformer.text.tokenizer import Tokenizer


class Distillation:
    """A loss (see `losses`) of which a teacher's predictions get the share `weight`, and the text the rest."""

    def __init__(self, teacher: Decoder, weight: float) -> None:
        self.teacher, self.weight = teacher, weight
        teacher.requires_grad_(False)
        teacher.training = True  # not its parts, which drop and count nothing then: it takes the fast path

    def __call__(self, model: nn.Module, inputs_bt: Tensor, targets_bt: Tensor) -> tuple[Tensor, int]:
        """The sum of -Σ q log p over all predictions, in nats and float32, for the mixture q; and their number."""
        with torch.no_grad():
            q_btv = self.weight * self.teacher(inputs_bt).float().softmax(-1)
            of_text = q_btv.new_full((*targets_bt.shape, 1), 1 - self.weight)
            q_btv.scatter_add_(-1, targets_bt.unsqueeze(-1), of_text)
        return -(q_btv * model(inputs_bt).float().log_softmax(-1)).sum(), targets_bt.numel()


def read_teachers(
    folders: Sequence[Path], tokenizer: Tokenizer, block_size: int, device: torch.device
) -> list[Decoder]:
    """The models of some folders. Raises `UserError` for one with another tokenizer, or too short a context."""
    teachers = []
    for folder in folders:
        teacher = read_model(folder, device)
        if Tokenizer.load(folder).fingerprint != tokenizer.fingerprint:
            raise UserError(f"`teacher`: {folder} has another tokenizer than the run; `tokenizer` {folder} takes it")
        if teacher.config.block_size < block_size:
            raise UserError(
                f"`teacher`: {folder} has a context of {teacher.config.block_size} tokens, less than `block_size` "
                f"{block_size}"
            )
        teachers.append(teacher)
    return teachers
