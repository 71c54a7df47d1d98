"""What a run leaves in its folder so that the same command goes on where it was.

`run.json` says which run the folder holds and whether it is finished; `checkpoints/` holds the newest state, written
whole or not at all. Loading a state never runs code from it (`weights_only`).
"""

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from mini_transformer import __version__
from mini_transformer.config import TrainConfig, flag
from mini_transformer.errors import UserError
from mini_transformer.files import read_json, replacing, try_lock, write_json
from mini_transformer.model.pretrained import CONFIG, GENERATION, WEIGHTS
from mini_transformer.training.phases import Material

RUN, METRICS, CURVE, TEXT, STATE_DICT = (
    "run.json",
    "metrics.jsonl",
    "loss_curve.png",
    "generated_text.txt",
    "model.pt",
)
VALIDATION = "validation.txt"  # which documents are held out: file and first line of each
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
OURS = (RUN, METRICS, CURVE, TEXT, STATE_DICT, VALIDATION, CONFIG, GENERATION, WEIGHTS, *TOKENIZER)
# What may differ between two calls of the same run without changing its result.
FREE = (
    "out_dir",
    "overwrite",
    "device",
    "gpus",
    "sample_interval",
    "checkpoint_interval",
    "val_data",
    "encoding",
    "tokenizer",
    "cache_dir",
    "in_memory",
    "text_field",
    "max_unreadable",
)


@dataclass
class State:
    """All that resuming needs. Order, dropout and schedule follow from the seed and these numbers."""

    phase: int  # index of the phase
    iteration: int  # iterations of it that are done
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    best_loss: float
    best_where: tuple[int, int]  # phase and iteration of the best weights
    best: dict[str, Tensor]  # the best weights, under their names on disk
    metrics_size: int  # bytes of metrics.jsonl that belong to it
    losses: list[float]  # of the iterations since the last evaluation
    evaluated: int  # iteration of this phase's last evaluation; -1: none yet


def settings(config: TrainConfig, material: Material) -> dict[str, Any]:
    """Everything that the result depends on, by flag; texts and tokenizer by their hash, wherever they lie."""
    values: dict[str, Any] = {"--tokenizer": Path(config.text.tokenizer).name}
    for part in (config.text, config.model, config.optim, config.run):
        for f in dataclasses.fields(part):
            if f.metadata and f.name not in FREE:
                values[flag(f.name)] = getattr(part, f.name)
    suffixes = [""] if len(config.phases) == 1 else [f"-{phase.name}" for phase in config.phases]
    for suffix, text in zip(suffixes, material.phases, strict=True):
        name = f"--{text.phase.name}-data" if suffix else "--data"
        values |= {
            f"--max-iters{suffix}": text.phase.iters,
            f"--lr{suffix}": text.phase.lr,
            name: text.digest,
        }
    return values | {"--val-data": material.validation_digest, "tokenizer": material.tokenizer.fingerprint[:12]}


def describe_environment(device: str, precision: torch.dtype) -> dict[str, Any]:
    """What "bit for bit" depends on beside the settings."""
    return {
        "version": __version__,
        "torch": torch.__version__,
        "device": device,
        "precision": str(precision).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


class RunFolder:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self._saved_at = float("-inf")
        self._save_seconds = 0.0
        self._lock: IO[Any] | None = None

    def open(self, wanted: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
        """What the folder holds: the record of the same run, or None if it is free or may be overwritten.

        Nothing is removed yet. Raises `UserError` if it cannot be written, if another process trains there, or if it
        holds another run or model that `overwrite` does not give up.
        """
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            raise UserError(f"--out-dir: {self.folder} is a file, not a folder")
        held = [name for name in OURS if os.path.lexists(self.folder / name)]
        if folders := [name for name in held if os.path.isdir(self.folder / name)]:
            raise UserError(f"--out-dir: {self.folder / folders[0]} is a folder, where a file of ours belongs")
        record = self._read_record(overwrite) if RUN in held else None
        difference = _difference(record["settings"], wanted) if record is not None else ""
        if record is not None and record.get("finished") and not difference and not overwrite:
            return record  # nothing will be written
        if held and RUN not in held and not overwrite:
            raise UserError(
                f"--out-dir: {self.folder} holds {held[0]}, but no run of ours; take another --out-dir, "
                "or --overwrite to replace the model there"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / ".lock", "wb")  # noqa: SIM115 - held as long as the process lives
        except OSError as error:
            raise UserError(f"--out-dir: {self.folder} cannot be written ({error.strerror})") from None
        if not try_lock(self._lock):
            raise UserError(f"--out-dir: another process is training in {self.folder}")
        if RUN in held:
            nothing_to_lose = WEIGHTS not in held and not self._states()
            if record is None or nothing_to_lose or (overwrite and (difference or record.get("finished"))):
                return None
            if difference:
                raise UserError(
                    f"--out-dir: {self.folder} holds a run with other settings ({difference}); "
                    "take another --out-dir, or --overwrite to give that run up"
                )
            return record
        return None

    def _read_record(self, overwrite: bool) -> dict[str, Any] | None:
        """`run.json`; None if it is damaged and may be overwritten."""
        try:
            record = read_json(self.folder / RUN)
        except UserError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("settings"), dict):
            return record
        if overwrite:
            return None
        raise UserError(f"{self.folder / RUN}: damaged; --overwrite starts anew")

    def clear(self) -> None:
        """Remove what a run writes, and nothing else. `run.json` goes last: until then it is still a run's folder."""
        for path in self._states():
            path.unlink(missing_ok=True)
        for name in reversed(OURS):
            (self.folder / name).unlink(missing_ok=True)

    def record(self, wanted: dict[str, Any], environment: dict[str, Any], finished: bool) -> None:
        """Say which run the folder holds."""
        write_json(self.folder / RUN, {"finished": finished, "settings": wanted, "environment": environment})

    def save(self, state: State, name: str) -> None:
        """Write a state, then drop the older one. Raises `UserError` if the disk is full."""
        started = time.monotonic()
        self.checkpoints.mkdir(exist_ok=True)
        path = self.checkpoints / f"{state.phase}-{name}-{state.iteration:08d}.pt"
        save_tensors(path, vars(state))
        for old in self._states():
            if old != path:
                old.unlink(missing_ok=True)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - started

    def save_is_due(self) -> bool:
        """Whether saving now would keep the time spent on it under about 5%; once a minute it always is."""
        return time.monotonic() - self._saved_at >= min(60.0, 20 * self._save_seconds)

    def load(self) -> State | None:
        """The newest state, or None. Raises `UserError` if it is damaged."""
        states = self._states()
        if not states:
            return None
        try:
            return State(**torch.load(states[-1], map_location="cpu", weights_only=True))
        except Exception as error:  # the unpickler may raise anything on damaged bytes
            raise UserError(f"{states[-1]}: damaged ({type(error).__name__}); --overwrite starts anew") from None

    def _states(self) -> list[Path]:
        return sorted(self.checkpoints.glob("[0-9]-*-[0-9]*.pt")) if os.path.isdir(self.checkpoints) else []

    def drop_drafts(self) -> None:
        """Remove what a killed process was writing."""
        for place in (self.folder, self.checkpoints):
            for temporary in place.glob(".*.temporary"):
                os.unlink(temporary)


def save_tensors(path: Path, value: Any) -> None:
    """`torch.save`, whole or not at all. Raises `UserError` if the disk is full."""
    try:
        with replacing(path) as temporary:
            torch.save(value, temporary)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: could not be written ({error}); the last checkpoint stands") from None


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first setting that differs, in words; empty if none does."""
    for name in [*new, *(name for name in old if name not in new)]:
        if old.get(name) != new.get(name):
            if name.endswith("-data") or name == "--data":
                return f"{name}: the text is another one"
            return f"{name}: {old.get(name, 'none')} there, {new.get(name, 'none')} here"
    return ""
