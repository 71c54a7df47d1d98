"""Checkpoints: all that resuming needs, in one file that appears whole or not at all.

Loading one never runs code from it (`weights_only`).
"""

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mini_transformer.errors import UserError
from mini_transformer.files import replacing


@dataclass
class Progress:
    """How far a run is. The order of the batches, dropout and the schedule follow from the seed and these numbers."""

    phase: int = 0  # index of the phase
    iteration: int = 0  # iterations of it that are done
    best_loss: float = math.inf
    best_step: tuple[int, int] = (0, 0)  # phase and iteration of the best weights
    losses: list[float] = field(default_factory=list)  # of the iterations since the last evaluation
    evaluated: int = -1  # iteration of this phase's last evaluation; -1: none yet
    overfitting_warned: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """What is saved."""

    progress: Progress
    model: dict[str, Any]
    optimizer: dict[str, Any]  # empty before the first step of a phase
    best: dict[str, Any]  # the best weights
    metrics_size: int  # bytes of metrics.jsonl that belong to it


class Checkpoints:
    """The checkpoints of a run, of which the newest is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._saved_at = -math.inf
        self._save_seconds = 0.0

    def save(self, checkpoint: Checkpoint, phase: str) -> None:
        """Write a checkpoint, then remove the older one. Raises `UserError` if the disk is full."""
        started = time.monotonic()
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{checkpoint.progress.phase}-{phase}-{checkpoint.progress.iteration:08d}.pt"
        save_tensors(path, {**vars(checkpoint), "progress": asdict(checkpoint.progress)})
        for old in set(self.paths()) - {path}:
            old.unlink(missing_ok=True)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - started

    def is_due(self) -> bool:
        """Whether saving now would keep the time spent on it under about 5%; once a minute it always is."""
        return time.monotonic() - self._saved_at >= min(60.0, 20 * self._save_seconds)

    def load(self) -> Checkpoint | None:
        """The newest checkpoint, or None. Raises `UserError` if it is damaged."""
        if not (paths := self.paths()):
            return None
        try:
            values = torch.load(paths[-1], map_location="cpu", weights_only=True)
            return Checkpoint(**values | {"progress": Progress(**values["progress"])})
        except Exception as error:  # the unpickler may raise anything on damaged bytes
            raise UserError(f"{paths[-1]}: damaged ({type(error).__name__}); `overwrite` starts anew") from None

    def paths(self) -> list[Path]:
        """The files, oldest first."""
        return sorted(self.folder.glob("[0-9]-*-[0-9]*.pt"))


def save_tensors(path: Path, value: Any) -> None:
    """`torch.save`, whole or not at all. Raises `UserError` if the disk is full."""
    try:
        with replacing(path) as temporary:
            torch.save(value, temporary)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: could not be written ({error}); the last checkpoint is whole") from None
