"""Checkpoints: all that resuming needs, whole or not at all, and which of them are kept.

One process and DDP write one file; under FSDP each rank writes its parts into a folder (`sharded`). A run goes on from
either, on any number of processes. Loading one never runs code from it: `weights_only`, safetensors and JSON.
"""

import math
import shutil
import time
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from mini_transformer.errors import UserError
from mini_transformer.files import disk_error, remove, replacing
from mini_transformer.runtime import log, rank
from mini_transformer.training import sharded
from mini_transformer.training.distributed import any_rank, from_rank_zero
from mini_transformer.training.graphs import gradients_aside
from mini_transformer.training.parallel import snapshot

SHARE = 0.05  # of the time, that saving may take


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


@dataclass
class State:
    """What is saved and taken up again; of tensors under FSDP this rank's parts."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    best: dict[str, Tensor]  # the best weights; none: never evaluated
    progress: Progress

    def tensors(self) -> dict[str, Any]:
        """The tensors by kind and name. An optimizer that has made no step has none."""
        tensors = {"model": get_model_state_dict(self.model), "best": self.best}
        if self.optimizer.state:
            tensors["optimizer"] = get_optimizer_state_dict(self.model, self.optimizer)["state"]
        return {kind: values for kind, values in tensors.items() if values}

    def note(self) -> dict[str, Any]:
        """The rest."""
        return {"progress": asdict(self.progress)}

    def check(self, tensors: dict[str, Any]) -> None:
        """Raises `ValueError` for tensors of other names, shapes or types than those of the run."""
        model = _structure(get_model_state_dict(self.model))
        optimizer = _structure(get_optimizer_state_dict(self.model, self.optimizer)["state"])
        expected = {"model": model, "best": model, "optimizer": optimizer}
        if "model" not in tensors or any(_structure(part) != expected.get(kind) for kind, part in tensors.items()):
            raise ValueError("tensors of another model")

    def take(self, tensors: dict[str, Any], progress: Progress, whole: bool) -> None:
        """Go on from these, which `check` has seen; `whole`: tensors are whole ones, under FSDP too."""
        options = StateDictOptions(full_state_dict=whole)
        if "best" in tensors:
            set_model_state_dict(self.model, tensors["best"], options=options)
            self.best = snapshot(self.model)
        set_model_state_dict(self.model, tensors["model"], options=options)
        if "optimizer" in tensors:
            groups = get_optimizer_state_dict(self.model, self.optimizer)["param_groups"]
            states = {"state": tensors["optimizer"], "param_groups": groups}
            set_optimizer_state_dict(self.model, self.optimizer, states, options=options)
        else:
            self.optimizer.state.clear()
        self.progress = progress


class Checkpoints:
    """The checkpoints of a run: the newest ones, that of the best evaluation, and that of each phase's end."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep
        self._step: tuple[int, int] | None = None  # of the newest one: nothing is saved twice
        self._saved_at, self._seconds = -math.inf, 0.0
        self._group: dist.ProcessGroup | None = None
        self._written: Future[Any] | None = None  # what is being written now, and where
        self._path = folder

    def save(self, state: State, phase: str) -> None:
        """Write a checkpoint (all ranks). A folder is there later, see `wait`. Raises `OSError` if it cannot be."""
        self.wait()
        step, best = (state.progress.phase, state.progress.iteration), state.progress.best_step
        if step == self._step:
            return
        self._step, self._path = step, self.folder / f"{step[0]}-{phase}-{step[1]:08d}"
        if isinstance(state.model, FSDPModule):
            self._path = self._path.with_suffix(".dcp")
            self._group = self._group or dist.new_group(backend="gloo")
            tensors = state.tensors()
            note = {**state.note(), "kinds": list(tensors)}
            path = self._path
            self._written = sharded.save(path, tensors, note, self._group, then=lambda: self._tidy(path, best))
        elif rank() == 0:
            self.folder.mkdir(exist_ok=True)
            self._path = self._path.with_suffix(".pt")
            save_tensors(self._path, {**state.note(), "tensors": state.tensors()})
            self._tidy(self._path, best)

    def wait(self) -> None:
        """Wait until what was saved is written. Raises `OSError` or `UserError` if it could not be."""
        if self._written is not None:
            written, self._written = self._written, None
            try:
                sharded.result_of(written, self._path)
            except BaseException:
                if rank() == 0:
                    self.remove_temporary()
                raise

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time in which training waits for something to be saved."""
        started = time.monotonic()
        yield
        self._saved_at = time.monotonic()
        self._seconds = self._saved_at - started

    def is_due(self) -> bool:
        """Whether saving now keeps it under its share of the time; not while the last one is still being written."""
        idle = time.monotonic() - self._saved_at
        return idle >= self._seconds / SHARE and (self._written is None or self._written.done())

    def load(self, state: State, iters: Sequence[int]) -> bool:
        """Take up the newest checkpoint that is whole; False if there is none at all. All ranks take the same.

        `iters`: the iterations of each phase. Raises `UserError` if all are damaged, or if some rank does not see what
        rank 0 sees.
        """
        with gradients_aside(state.model):  # torch prepares the state of an optimizer only then
            return self._load_newest(state, iters)

    def _load_newest(self, state: State, iters: Sequence[int]) -> bool:
        damaged: list[tuple[str, str]] = []
        for name in from_rank_zero([path.name for path in reversed(self.paths())]):
            if any_rank(not (self.folder / name).exists()):
                raise UserError(sharded.NOT_SHARED.format(self.folder.parent))
            if error := self._load(self.folder / name, state, iters):
                damaged.append((name, error))
                continue
            _log_damaged(damaged, name)
            self._step = state.progress.phase, state.progress.iteration
            return True
        if damaged:
            raise UserError(f"{self.folder / damaged[0][0]}: damaged ({damaged[0][1]}); `overwrite` starts anew")
        return False

    def newest(self, iters: Sequence[int]) -> tuple[Path, Progress]:
        """The newest checkpoint that is whole, and its progress in phases of so many iterations at most.

        Raises `UserError` if all are damaged.
        """
        damaged: list[tuple[str, str]] = []
        for path in reversed(self.paths()):
            try:
                progress = _progress(_load_file(path) if path.suffix == ".pt" else sharded.read_note(path), iters)
            except Exception as failure:  # damaged bytes may raise anything
                damaged.append((path.name, type(failure).__name__))
                continue
            _log_damaged(damaged, path.name)
            return path, progress
        raise UserError(f"{self.folder / damaged[0][0]}: damaged ({damaged[0][1]})")

    def _load(self, path: Path, state: State, iters: Sequence[int]) -> str:
        """Take up a checkpoint; what is wrong with it, on whichever rank, else nothing."""
        error, whole = "", path.suffix == ".pt"
        try:
            if whole:
                note = _load_file(path)
                tensors = note["tensors"]
            else:
                note = sharded.read_note(path)
                tensors = {kind: values for kind, values in _like(state).items() if kind in note["kinds"]}
                sharded.read_into(path, tensors)
            state.check(tensors)
            progress = _progress(note, iters)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as failure:  # damaged bytes may raise anything
            error = type(failure).__name__
        if any_rank(bool(error)):
            return error or "as another node sees it"
        state.take(tensors, progress, whole)
        return ""

    def _tidy(self, saved: Path, best: tuple[int, int]) -> None:
        """Remove what need not be kept, and damaged ones that are not older than the one just saved."""
        whole = [*(path for path in self.paths() if _step(path) < _step(saved)), saved]
        ends = {_step(path)[0]: path for path in whole}  # the last one of each phase
        kept = {*whole[-self.keep :], *ends.values(), *(path for path in whole if _step(path) == best)}
        for path in set(self.paths()) - kept:
            remove(path)

    def paths(self) -> list[Path]:
        """The checkpoints, files and folders, oldest first."""
        return sorted((p for p in self.folder.glob("[0-9]-*-[0-9]*.*") if p.suffix in (".pt", ".dcp")), key=_step)

    def clear(self) -> None:
        """Remove all of them, and the folder if nothing else is in it."""
        for path in self.paths():
            remove(path)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def remove_temporary(self) -> None:
        """Remove what a killed process was writing."""
        for temporary in self.folder.glob(".*.temporary"):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()


def _log_damaged(damaged: list[tuple[str, str]], whole: str) -> None:
    for name, error in damaged:
        log(f"{name}: damaged ({error}); going on from {whole}")


def _load_file(path: Path) -> Any:
    with zipfile.ZipFile(path) as file:  # which is what torch writes; it does not look at the checksums in it
        if name := file.testzip():
            raise ValueError(f"{name} is damaged")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a pickle that it will refuse
        return torch.load(path, map_location="cpu", weights_only=True)


def _progress(note: dict[str, Any], iters: Sequence[int]) -> Progress:
    """The progress in a note. May raise anything if that is not one, or beyond these iterations of the phases."""
    found = Progress(**{**note["progress"], "best_step": tuple(note["progress"]["best_step"])})
    numbers = [found.phase, found.iteration, found.evaluated, *found.best_step]
    types = [[type(value) for value in vars(progress).values()] for progress in (found, Progress())]
    fits = types[0] == types[1] and {*map(type, found.losses)} <= {float} and {*map(type, numbers)} == {int}
    if not (
        fits
        and (0, 0) <= found.best_step <= (found.phase, found.iteration)
        and -1 <= found.evaluated <= found.iteration <= iters[found.phase]
    ):
        raise ValueError("no progress of this run")
    return found


def _structure(value: Any) -> Any:
    """Names, shapes and types of tensors, however they are nested."""
    if isinstance(value, dict):
        return {name: _structure(part) for name, part in value.items()}
    return tuple(value.shape), value.dtype


def save_tensors(path: Path, value: Any) -> None:
    """`torch.save`, whole or not at all. Raises `OSError` if the disk is full."""
    with replacing(path) as temporary:
        try:
            with open(temporary, "wb") as file:  # given a path, torch would not say what went wrong
                torch.save(value, file)
        except (OSError, RuntimeError) as error:
            raise disk_error(error, path) or error from None


def _like(state: State) -> dict[str, Any]:
    """Tensors of the shapes of all that may have been saved, to be filled."""
    optimizer = get_optimizer_state_dict(state.model, state.optimizer)["state"]
    return {"model": snapshot(state.model), "best": snapshot(state.model), "optimizer": optimizer}


def _step(path: Path) -> tuple[int, int]:
    """Phase and iteration of a checkpoint, by its name."""
    return int(path.name.split("-")[0]), int(path.stem.split("-")[-1])
