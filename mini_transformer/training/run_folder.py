"""The folder of a run: whose it is, whether it is finished, and who may write to it.

`run.json` records the run: its settings, the fingerprints of its texts and tokenizer, and the environment that "bit for
bit" depends on. Given as a recipe, it repeats the run.
"""

import os
from pathlib import Path
from typing import Any

import torch

from mini_transformer import __version__
from mini_transformer.errors import UserError
from mini_transformer.files import read_json, try_lock, write_json
from mini_transformer.model.pretrained import CONFIG, GENERATION, WEIGHTS
from mini_transformer.runtime import world_size
from mini_transformer.settings import settings_difference
from mini_transformer.training.checkpoint import Checkpoints
from mini_transformer.training.events import FILES, FOLDER

RUN, METRICS, CURVE = "run.json", "metrics.jsonl", "loss_curve.png"
TEXT, STATE_DICT = "generated_text.txt", "model.pt"
VALIDATION = "validation.txt"  # which documents are held out: file and first line of each
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
OURS = (RUN, METRICS, CURVE, TEXT, STATE_DICT, VALIDATION, CONFIG, GENERATION, WEIGHTS, *TOKENIZER)

Record = dict[str, Any]  # "settings" and "fingerprints" of a run


def describe_environment(device: str, precision: torch.dtype, parallel: str) -> dict[str, Any]:
    """What "bit for bit" depends on beside the settings."""
    versions = {"version": __version__, "torch": torch.__version__}
    kind = str(precision).removeprefix("torch.")
    processes = {"processes": world_size(), "parallel": parallel, "threads": torch.get_num_threads()}
    return {**versions, "device": device, "precision": kind, **processes}


class RunFolder:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = Checkpoints(folder / "checkpoints")

    def open(self, wanted: Record, overwrite: bool) -> Record | None:
        """The record of the same run if the folder holds it; None if it is free or may be overwritten.

        Nothing is removed yet. Raises `UserError` if it cannot be written, if another process trains there, or if it
        holds another run or model that `overwrite` does not give up.
        """
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            raise UserError(f"`out_dir`: {self.folder} is a file, not a folder")
        holds = f"`out_dir`: {self.folder} holds"
        present = [name for name in OURS if os.path.lexists(self.folder / name)]
        if folders := [name for name in present if os.path.isdir(self.folder / name)]:
            raise UserError(f"`out_dir`: {self.folder / folders[0]} is a folder, but a file of ours has that name")
        record = self._read_record(overwrite) if RUN in present else None
        difference = _difference(record, wanted) if record else ""
        if record and record.get("finished") and not difference and not overwrite:
            return record  # nothing will be written
        if present and RUN not in present and not overwrite:
            what = f"{present[0]}, but no run of ours"
            raise UserError(f"{holds} {what}; choose another `out_dir`, or `overwrite` to replace the model there")
        self._take()
        nothing_to_lose = WEIGHTS not in present and not self.checkpoints.paths()
        if record is None or nothing_to_lose or (overwrite and (difference or record.get("finished"))):
            return None
        if difference:
            what = f"a run with other settings ({difference})"
            raise UserError(f"{holds} {what}; choose another `out_dir`, or `overwrite` to give that run up")
        return record

    def _take(self) -> None:
        """Make the folder and lock it, as long as the process lives."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / ".lock", "wb")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"`out_dir`: {self.folder} cannot be written ({error.strerror})") from None
        if not try_lock(self._lock):
            raise UserError(f"`out_dir`: another process is training in {self.folder}")

    def _read_record(self, overwrite: bool) -> Record | None:
        """`run.json`; None if it is damaged and may be overwritten."""
        try:
            record = read_json(self.folder / RUN)
        except UserError:
            record = None
        if isinstance(record, dict) and all(isinstance(record.get(k), dict) for k in ("settings", "fingerprints")):
            return record
        if overwrite:
            return None
        raise UserError(f"{self.folder / RUN}: damaged; `overwrite` starts anew")

    def clear(self) -> None:
        """Remove what a run writes, and nothing else. `run.json` goes last: until then it is still a run's folder."""
        events = (self.folder / FOLDER).glob(FILES)
        for path in (*self.checkpoints.paths(), *events, *(self.folder / name for name in reversed(OURS))):
            path.unlink(missing_ok=True)

    def write_record(self, wanted: Record, environment: dict[str, Any], finished: bool) -> None:
        """Say which run the folder holds."""
        write_json(self.folder / RUN, {"finished": finished, **wanted, "environment": environment})

    def remove_temporary_files(self) -> None:
        """Remove what a killed process was writing."""
        for temporary in (*self.folder.glob(".*.temporary"), *self.checkpoints.folder.glob(".*.temporary")):
            temporary.unlink()


def _difference(there: Record, here: Record) -> str:
    """The first difference between two runs, in words; empty if there is none."""
    if difference := settings_difference(there["settings"], here["settings"]):
        return difference
    for name, fingerprint in here["fingerprints"].items():
        if there["fingerprints"].get(name) != fingerprint:
            setting = {"train": "data", "validation": "val_data", "tokenizer": name}.get(name, f"{name}_data")
            return f"`{setting}`: the {'tokenizer' if name == 'tokenizer' else 'text'} is another one"
    return ""
