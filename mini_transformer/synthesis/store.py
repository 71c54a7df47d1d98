"""What a run leaves on disk, so that killed at any moment it goes on where it was.

For `--out data_mix.txt`:

    data_mix.txt           the training text: derived from the next, and completed from it at each start
    data_mix.jsonl         one line for each sample that was kept
    data_mix.drops.jsonl   one line for each that was dropped, with the reason
    data_mix.run.json      the settings, and how far the run is; replaced in one step when a batch is done

The two `.jsonl` only grow. `run.json` knows how many of their bytes belong to finished batches; what a killed run wrote
behind is cut off at the next start, and written again. The text follows `run.json`, so after a kill it can only be too
short. A new run changes nothing on disk before its first batch is there: until then, what `--overwrite` replaces stays.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mini_transformer.errors import UserError
from mini_transformer.files import try_lock, write_json

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
    """The files of one run. Raises `UserError` if they hold another run, were changed, or cannot be written."""

    def __init__(self, out: Path, settings: dict[str, Any], first: int, overwrite: bool = False) -> None:
        """`first`: the number of the first sample, for a new run."""
        if out.is_dir():
            raise UserError(f"--out: {out} is a folder, not a file")
        self.text = out
        self.samples, self.drops = out.with_suffix(".jsonl"), out.with_suffix(".drops.jsonl")
        self.run = out.with_suffix(".run.json")
        self.settings = settings
        self.progress, self._first, self._new = Progress(first), first, True
        self.records: list[dict[str, Any]] = []
        self._files: dict[Path, BinaryIO] = {}
        self._made: list[Path] = []  # files that were not there before this call
        try:
            self._open()
            if not overwrite and self.run.exists():
                self._go_on()
            elif not overwrite:
                self._refuse_strangers()
        except OSError as error:
            self.close()
            raise UserError(f"--out: {out} cannot be written ({error.strerror})") from None
        except BaseException:
            self.close()
            raise

    def commit(self, kept: list[dict[str, Any]], dropped: list[dict[str, Any]]) -> None:
        """Add what a batch gave: all of it or nothing, whenever the process is killed.

        `progress` must already tell the state after it. Raises `UserError` if the disk is full.
        """
        try:
            with _uninterrupted():
                if self._new:
                    self._begin()
                for path, records in ((self.samples, kept), (self.drops, dropped)):
                    if records:
                        _append(self._files[path], "".join(_line(record) for record in records).encode())
                self._save()
                if kept:
                    _append(self._files[self.text], _text(kept))
                self.records += kept
        except OSError as error:
            raise UserError(
                f"--out: {self.text} cannot be written ({error.strerror}); the samples so far are kept"
            ) from None

    def close(self) -> None:
        """Close the files; another process may go on. A run that got nothing leaves nothing behind."""
        if self._new:
            for path in self._made:  # before the lock goes: afterwards they may be another's
                path.unlink(missing_ok=True)
        for file in self._files.values():
            file.close()

    def _open(self) -> None:
        """Open the files, for this process alone."""
        self.text.parent.mkdir(parents=True, exist_ok=True)
        for path in (self.samples, self.drops, self.text):
            missing = not path.exists()
            file = self._files[path] = _open(path)
            # A file without a name is one that another process, which got nothing, took away at this moment.
            if path == self.samples and not (try_lock(file) and os.fstat(file.fileno()).st_nlink):
                raise UserError(
                    f"--out: another process is writing {self.text}; machines that share the work need --shard"
                )
            if missing:
                self._made.append(path)

    def _refuse_strangers(self) -> None:
        for path, file in self._files.items():
            if file.seek(0, os.SEEK_END):
                raise UserError(
                    f"--out: {path} is there, but no run of ours; take another --out, or --overwrite to replace it"
                )

    def _go_on(self) -> None:
        """Take up the run that is there. Nothing is changed before all of it is found in order."""
        settings, progress = read_run(self.run)
        if progress.kept or progress.asked:  # otherwise there is nothing that other settings could disagree with
            self._refuse_other_settings(settings)
            self.progress = progress
        sizes = self.progress.sizes
        self.records = self._read_samples(sizes.get(self.samples.name, 0))
        text, there = _text(self.records), self.text.read_bytes()
        if not text.startswith(there):
            raise UserError(
                f"{self.text}: changed by hand (it is written anew from {self.samples.name}): move your version away, "
                "then start again"
            )
        lost = sizes.get(self.drops.name, 0) - self._files[self.drops].seek(0, os.SEEK_END)
        self._files[self.samples].truncate(sizes.get(self.samples.name, 0))
        if lost > 0:  # they are there to be read by people: the run does not need them
            print(f"Note: {self.drops}: {lost:,} bytes are missing; the run goes on without these records", flush=True)
            self._save()
        else:
            self._files[self.drops].truncate(sizes.get(self.drops.name, 0))
        _append(self._files[self.text], text[len(there) :])
        self._new = not (progress.kept or progress.asked)

    def _refuse_other_settings(self, settings: dict[str, Any]) -> None:
        name = difference(settings, self.settings)
        if name is not None:
            both = f"{name}: {settings.get(name)} there, {self.settings[name]} here"
            if name in BY_DIGEST:
                both = f"{name}: the text is another one"
            raise UserError(
                f"--out: {self.text} holds samples of other settings ({both}); take another --out, or --overwrite "
                "to give them up"
            )

    def _read_samples(self, size: int) -> list[dict[str, Any]]:
        data = self.samples.read_bytes()
        if len(data) < size:
            raise UserError(
                f"{self.samples}: {size - len(data)} bytes are missing at its end; put the file back, or --overwrite "
                "to start anew"
            )
        try:
            records = [json.loads(line) for line in data[:size].splitlines()]
            _text(records)
            if len({record["number"] for record in records}) != self.progress.kept:
                raise ValueError
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{self.samples}: changed by hand; put it back, or --overwrite to start anew") from None
        return records

    def _begin(self) -> None:
        """Give up what `--overwrite` replaces. A kill leaves the old run, which has its text anew, or an empty one."""
        _empty(self._files[self.text])
        write_json(self.run, {"settings": self.settings, "progress": asdict(Progress(self._first))})
        self._new = False
        for path in (self.samples, self.drops):
            _empty(self._files[path])

    def _save(self) -> None:
        for path in (self.samples, self.drops):
            self.progress.sizes[path.name] = self._files[path].seek(0, os.SEEK_END)
        write_json(self.run, {"settings": self.settings, "progress": asdict(self.progress)})


def read_run(path: Path) -> tuple[dict[str, Any], Progress]:
    """The settings and the progress that a `run.json` holds. Raises `UserError` if it is damaged."""
    try:
        record = json.loads(path.read_bytes())
        progress = Progress(**record["progress"])
        progress.open = {int(number): attempt for number, attempt in progress.open.items()}
        return dict(record["settings"]), progress
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged; put it back, or --overwrite to start anew") from None


def difference(there: dict[str, Any], here: dict[str, Any]) -> str | None:
    """The first setting of `here` that is another one there. One folder of a model may be named in several ways."""
    for name, wanted in here.items():
        both = (there.get(name), wanted)
        if name == "--model":
            both = (os.path.abspath(str(both[0])), os.path.abspath(str(both[1])))
        if both[0] != both[1]:
            return name
    return None


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is done."""
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        signal.raise_signal(signal.SIGINT)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _text(records: list[dict[str, Any]]) -> bytes:
    return "".join(record["text"] + BORDER for record in records).encode()


def _open(path: Path) -> BinaryIO:
    return open(path, "ab", buffering=0)


def _append(file: BinaryIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


def _empty(file: BinaryIO) -> None:
    file.truncate(0)
    os.fsync(file.fileno())
