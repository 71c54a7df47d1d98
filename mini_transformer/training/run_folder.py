"""The folder of a run: whose it is, whether it is finished, and who may write to it.

`run.json` records the run: its settings, the fingerprints of its texts and tokenizer, and the environment that "bit for
bit" depends on. Given as a recipe, it repeats the run.
"""

import os
import shlex
from collections.abc import Set
from pathlib import Path
from typing import IO, Any, Self

import torch

from mini_transformer import __version__
from mini_transformer.checksums import SUMS
from mini_transformer.errors import UserError
from mini_transformer.files import read_json, try_lock, write_json
from mini_transformer.model.pretrained import CONFIG, GENERATION, WEIGHTS
from mini_transformer.runtime import world_size
from mini_transformer.settings import MIXTURE, SHAPE, in_words, settings_difference
from mini_transformer.training.checkpoint import Checkpoints
from mini_transformer.training.events import FILES, FOLDER

RUN, METRICS, CURVE = "run.json", "metrics.jsonl", "loss_curve.png"
TEXT, STATE_DICT, GGUF = "generated_text.txt", "model.pt", "model.gguf"
VALIDATION = "validation.txt"  # which documents are held out: file and first line of each
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
OURS = (RUN, METRICS, CURVE, TEXT, STATE_DICT, GGUF, VALIDATION, CONFIG, GENERATION, WEIGHTS, *TOKENIZER, SUMS)

Record = dict[str, Any]  # "settings" and "fingerprints" of a run, and "forked_from" if it is a fork


def describe_environment(device: str, precision: torch.dtype, parallel: str) -> dict[str, Any]:
    """What "bit for bit" depends on beside the settings."""
    versions = {"version": __version__, "torch": torch.__version__}
    kind = str(precision).removeprefix("torch.")
    processes = {"processes": world_size(), "parallel": parallel, "threads": torch.get_num_threads()}
    return {**versions, "device": device, "precision": kind, **processes}


class RunFolder:
    """The folder of one run. As a context it is given back at the end to whoever trains there next."""

    def __init__(self, folder: Path, keep: int = 2, setting: str = "out_dir") -> None:
        """`keep`: how many checkpoints; `setting`: the one that names the folder."""
        self.folder, self.setting = folder, setting
        self.checkpoints = Checkpoints(folder / "checkpoints", keep)
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock:  # a notebook keeps what an error has seen, its open files too
            self._lock.close()

    def open(self, wanted: Record, overwrite: bool) -> Record | None:
        """The record of the same run if the folder holds it; None if it is free or may be overwritten.

        Nothing is removed yet. Raises `UserError` if it cannot be written, if another process trains there, or if it
        holds another run or model that `overwrite` does not give up.
        """
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            raise UserError(f"`{self.setting}`: {self.folder} is a file, not a folder")
        holds = f"`{self.setting}`: {self.folder} holds"
        present = [name for name in OURS if os.path.lexists(self.folder / name)]
        if folders := [name for name in present if os.path.isdir(self.folder / name)]:
            raise UserError(
                f"`{self.setting}`: {self.folder / folders[0]} is a folder, but a file of ours has that name"
            )
        record = self.read_record(overwrite) if RUN in present else None
        difference = _difference(record, wanted) if record else ""
        if record and record.get("finished") and not difference and not overwrite:
            return record  # nothing will be written
        if present and RUN not in present and not overwrite:
            what = f"{present[0]}, but no run of ours"
            raise UserError(f"{holds} {what}; choose another `{self.setting}`, or `overwrite` to replace it")
        self._take()
        nothing_to_lose = not (self.checkpoints.paths() or (WEIGHTS in present and self._has_trained()))
        if record is None or nothing_to_lose or (overwrite and (difference or record.get("finished"))):
            return None
        if difference:
            what = f"a run with other settings ({difference})"
            raise UserError(f"{holds} {what}; {self._way_on(record, wanted)}; `overwrite` gives that run up")
        return record

    def _way_on(self, record: Record, wanted: Record) -> str:
        """What to do about a run with other settings, to copy where there are flags for it."""
        if "forked_from" in wanted or _difference_in(SHAPE - {"block_size"}, record, wanted):
            return f"choose another `{self.setting}`"
        if fixed_difference(record, wanted) or record.get("finished") or not self.checkpoints.paths():
            return f"{start_command(self.folder)} starts a new run from its weights"
        return "`fork` NEWDIR goes on with it under these settings"

    def _has_trained(self) -> bool:
        """Whether the metrics tell of a step: the weights of before are random ones."""
        path = self.folder / METRICS
        return not path.is_file() or b"train_loss" in path.read_bytes()

    def _take(self) -> None:
        """Make the folder and lock it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / ".lock", "wb")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"`{self.setting}`: {self.folder} cannot be written ({error.strerror})") from None
        if not try_lock(self._lock):
            raise UserError(f"`{self.setting}`: another process is training in {self.folder}")

    def read_record(self, overwrite: bool = False) -> Record | None:
        """`run.json`; None if it is damaged and may be overwritten."""
        try:
            record = read_json(self.folder / RUN)
        except UserError:
            record = None
        parts = [record.get(k) for k in ("settings", "fingerprints")] if isinstance(record, dict) else [None]
        optional = [record.get(k, {}) for k in ("forked_from", "environment")] if isinstance(record, dict) else []
        if all(isinstance(part, dict) for part in (*parts, *optional)):
            return record
        if overwrite:
            return None
        raise UserError(f"{self.folder / RUN}: damaged; `overwrite` starts anew")

    def clear(self) -> None:
        """Remove what a run writes, and nothing else. `run.json` goes last: until then it is still a run's folder."""
        self.checkpoints.clear()
        for path in (*(self.folder / FOLDER).glob(FILES), *(self.folder / name for name in reversed(OURS))):
            path.unlink(missing_ok=True)

    def write_record(self, wanted: Record, environment: dict[str, Any], finished: bool) -> None:
        """Say which run the folder holds."""
        write_json(self.folder / RUN, {"finished": finished, **wanted, "environment": environment})

    def remove_temporary_files(self) -> None:
        """Remove what a killed process was writing."""
        self.checkpoints.remove_temporary()
        for temporary in self.folder.glob(".*.temporary"):
            temporary.unlink()


def start_command(folder: Path, new: Path | str = "NEWDIR") -> str:
    """The flags that start a new run from the weights of a folder, to copy."""
    return f"`init_from` {shlex.quote(str(folder))} `out_dir` {shlex.quote(str(new))}"


def fixed_difference(there: Record, here: Record) -> str:
    """The first difference between two runs that a fork cannot bridge, in words; empty if there is none."""
    found = _difference_in(SHAPE | MIXTURE, there, here)
    return found or _fingerprint_difference(there["fingerprints"], here["fingerprints"])


def _difference_in(names: Set[str], there: Record, here: Record) -> str:
    settings = [{name: value for name, value in run["settings"].items() if name in names} for run in (there, here)]
    return settings_difference(*settings)


def _difference(there: Record, here: Record) -> str:
    """The first difference between two runs, in words; empty if there is none."""
    if "forked_from" in here and there.get("forked_from", {}).get("settings") != here["forked_from"]["settings"]:
        return "it is another fork, or none"
    settings = there["settings"], here["settings"]
    another = settings[0].get("tokenizer") != settings[1].get("tokenizer")
    if another and there["fingerprints"].get("tokenizer") != here["fingerprints"]["tokenizer"]:
        return in_words("tokenizer", *settings)  # a folder of the same tokenizer may have another name
    if difference := settings_difference(*settings):
        return difference
    return _fingerprint_difference(there["fingerprints"], here["fingerprints"])


def _fingerprint_difference(there: dict[str, str], here: dict[str, str]) -> str:
    settings = {"train": "data", "validation": "val_data", "init": "init_from"}
    others = dict.fromkeys(("init", "teacher"), "the weights are others")
    words = {"tokenizer": "the tokenizer is another one", **others}
    for name in dict.fromkeys([*here, *there]):
        if there.get(name) != here.get(name):
            in_both = name in there and name in here
            what = words.get(name, "the text is another one") if in_both else "only one of the two runs has it"
            return f"`{settings.get(name, name if name in words else f'{name}_data')}`: {what}"
    return ""
