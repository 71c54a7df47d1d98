"""What a run leaves on disk, so that killed at any moment it goes on where it was.

For `--out data_mix.txt`:

    data_mix.txt           the training text: derived from the next, and made to agree with it at each start
    data_mix.jsonl         one line for each sample that was kept
    data_mix.drops.jsonl   one line for each that was dropped, with the reason
    data_mix.run.json      the settings, and how far the run is; replaced in one step when a batch is done

The two `.jsonl` only grow. `run.json` knows how many of their bytes belong to finished batches; what a killed run wrote
behind is cut off at the next start, and written again.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mini_transformer.errors import UserError
from mini_transformer.files import replacing, try_lock, write_json

BORDER = "\n\n\n"  # two blank lines part documents
BY_DIGEST = ("--recipe", "--avoid")  # settings that are recorded as the digest of a text


@dataclass
class Progress:
    """How far a run is. Everything else follows from the settings and the samples."""

    next: int  # the number of the next sample that was never asked for
    open: dict[int, int] = field(default_factory=dict)  # samples asked for but not kept: their next attempt
    kept: int = 0
    asked: int = 0
    tokens: int = 0
    seconds: float = 0.0
    drops: dict[str, int] = field(default_factory=dict)  # by reason
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of the files that only grow


class Store:
    """The files of one run. Raises `UserError` if they hold another run, or cannot be written."""

    def __init__(self, out: Path, settings: dict[str, Any], first: int, overwrite: bool = False) -> None:
        """`first`: the number of the first sample, for a new run."""
        self.text = out
        self.samples, self.drops = out.with_suffix(".jsonl"), out.with_suffix(".drops.jsonl")
        self.run = out.with_suffix(".run.json")
        self.settings = settings
        if out.is_dir():
            raise UserError(f"--out: {out} is a folder, not a file")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            if not overwrite:
                self._read(first)  # refuses before anything is touched
            self._files = {path: _open(path) for path in (self.samples, self.drops, self.text)}
            if not try_lock(self._files[self.samples]):
                raise UserError(f"--out: another process is writing {out}; machines that share the work need --shard")
            if overwrite:
                self.run.unlink(missing_ok=True)
            self.progress = Progress(first) if overwrite else self._read(first)
            for path in (self.samples, self.drops):
                self._cut(path, self.progress.sizes.get(path.name, 0))
            self.records = self._read_samples()
            self._derive_text()
            self._save()
        except OSError as error:
            raise UserError(f"--out: {out} cannot be written ({error.strerror})") from None

    def commit(self, kept: list[dict[str, Any]], dropped: list[dict[str, Any]]) -> None:
        """Add what a batch gave: all of it or nothing, whenever the process is killed.

        `progress` must already tell the state after it. Raises `UserError` if the disk is full.
        """
        try:
            for path, records in ((self.samples, kept), (self.drops, dropped)):
                if records:
                    _append(self._files[path], "".join(_line(record) for record in records))
            self._save()
            if kept:
                _append(self._files[self.text], "".join(record["text"] + BORDER for record in kept))
        except OSError as error:
            raise UserError(
                f"--out: {self.text} cannot be written ({error.strerror}); the samples so far are kept"
            ) from None
        self.records += kept

    def close(self) -> None:
        """Close the files; another process may go on."""
        for file in self._files.values():
            file.close()

    def give_up(self) -> None:
        """Close, and leave nothing behind of a run that has not asked for anything yet."""
        self.close()
        if not self.progress.asked:
            for path in (self.run, *self._files):
                path.unlink(missing_ok=True)

    def _save(self) -> None:
        for path in (self.samples, self.drops):
            self.progress.sizes[path.name] = self._files[path].seek(0, os.SEEK_END)
        write_json(self.run, {"settings": self.settings, "progress": asdict(self.progress)})

    def _read(self, first: int) -> Progress:
        if not self.run.exists():
            for path in (self.samples, self.drops, self.text):
                if path.exists() and path.stat().st_size:
                    raise UserError(
                        f"--out: {path} is there, but no run of ours; take another --out, or --overwrite to replace it"
                    )
            return Progress(first)
        settings, progress = read_run(self.run)
        for name, wanted in self.settings.items():
            if settings.get(name) != wanted:
                both = f"{name}: {settings.get(name)} there, {wanted} here"
                if name in BY_DIGEST:
                    both = f"{name}: the text is another one"
                raise UserError(
                    f"--out: {self.text} holds samples of other settings ({both}); take another --out, or --overwrite "
                    "to give them up"
                )
        return progress

    def _cut(self, path: Path, size: int) -> None:
        there = self._files[path].seek(0, os.SEEK_END)
        if there < size:
            raise UserError(
                f"{path}: {size - there} bytes are missing at its end; put the file back, or --overwrite to start anew"
            )
        self._files[path].truncate(size)

    def _read_samples(self) -> list[dict[str, Any]]:
        try:
            records = [json.loads(line) for line in self.samples.read_bytes().splitlines()]
            if len({record["number"] for record in records}) != self.progress.kept:
                raise ValueError
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{self.samples}: changed by hand; put it back, or --overwrite to start anew") from None
        return records

    def _derive_text(self) -> None:
        wanted = "".join(record["text"] + BORDER for record in self.records).encode()
        if self.text.read_bytes() == wanted:
            return
        self._files[self.text].close()
        with replacing(self.text) as draft:
            draft.write_bytes(wanted)
        self._files[self.text] = _open(self.text)


def read_run(path: Path) -> tuple[dict[str, Any], Progress]:
    """The settings and the progress that a `run.json` holds. Raises `UserError` if it is damaged."""
    try:
        record = json.loads(path.read_bytes())
        progress = Progress(**record["progress"])
        progress.open = {int(number): attempt for number, attempt in progress.open.items()}
        return dict(record["settings"]), progress
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged; put it back, or --overwrite to start anew") from None


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _open(path: Path) -> BinaryIO:
    return open(path, "ab", buffering=0)


def _append(file: BinaryIO, text: str) -> None:
    data = memoryview(text.encode())
    while data:
        data = data[file.write(data) :]
    os.fsync(file.fileno())
