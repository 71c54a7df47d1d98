"""What a run leaves on disk, so that killed at any moment it goes on where it was.

For the setting `out` data_mix.txt:

    data_mix.jsonl   the settings; then one line per sample, kept or rejected, and after each batch a marker
    data_mix.txt     the training text: derived from the samples that were kept, and completed at each start

The `.jsonl` appears with its first batch, whole, and then only grows. What follows its last marker belongs to a batch
that a kill broke off: it is removed at the next start, and written again. How far a run is follows from its samples.
"""

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mini_transformer.errors import UserError
from mini_transformer.files import parse_json, replacing, try_lock
from mini_transformer.text.documents import DOCUMENT_SEPARATOR

MARKER = "samples_so_far"  # the key of a marker; beside it is the CRC-32 of all before it
NEEDED = {"number": int, "attempt": int, "tokens": int, "kind": str, "text": str}  # and their types
LARGEST_GAP = 10**6  # between the numbers of samples: far more than shards and requests in flight make
BY_DIGEST = ("recipe", "avoid")  # settings that are recorded as the digest of a text

Record = dict[str, Any]


class Progress:
    """How far a run is, by its samples. Their numbers are `first`, `first + step`, and so on."""

    def __init__(self, first: int, step: int) -> None:
        self.next, self._step = first, step  # the next number that was never asked for
        self.open: dict[int, int] = {}  # samples asked for but not kept: their next attempt
        self.kept: list[Record] = []
        self.rejected: Counter[str] = Counter()  # by reason
        self.asked = self.tokens = 0

    def draw(self) -> int:
        """The number of a new sample."""
        self.open[self.next] = 0
        self.next += self._step
        return self.next - self._step

    def add(self, record: Record) -> None:
        """Count a sample. Raises `LookupError` or `TypeError` if it cannot follow those before it."""
        number, reason = record["number"], record["rejected"]
        if number - self.next > LARGEST_GAP * self._step:
            raise LookupError
        while self.next <= number:
            self.draw()
        self.asked, self.tokens = self.asked + 1, self.tokens + record["tokens"]
        if reason is None:
            del self.open[number]
            self.kept.append(record)
        else:
            self.open[number] = record["attempt"] + 1
            self.rejected[reason] += 1


class Store:
    """The files of one run. Raises `UserError` if they hold another run, were changed, or cannot be written."""

    def __init__(self, out: Path, settings: Record, part: tuple[int, int] = (0, 1), overwrite: bool = False) -> None:
        """`part` (i, n): of each n samples the i-th, from 0, is this run's."""
        if out.is_dir():
            raise UserError(f"`out`: {out} is a folder, not a file")
        self.text, self.samples = out, out.with_suffix(".jsonl")
        self.progress, self._settings, self._new = Progress(*part), settings, True
        self._crc = 0  # of the samples file
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            self._created = not out.exists()
            self._file = open(out, "ab", buffering=0)  # noqa: SIM115  # open and locked until `close`
            try:
                self._start(overwrite)
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise UserError(f"`out`: {out} cannot be written ({error.strerror})") from None

    def commit(self, records: list[Record]) -> None:
        """Add a batch: all or nothing, whenever the process is killed. Raises `UserError` if the disk is full."""
        for record in records:
            self.progress.add(record)
        try:
            with ThreadPoolExecutor(1) as thread:  # which Ctrl-C does not reach, and waits for
                thread.submit(self._write, records).result()
        except OSError as error:
            problem = f"cannot be written ({error.strerror}); the samples so far are kept"
            raise UserError(f"`out`: {self.text} {problem}") from None

    def close(self) -> None:
        """Close the files; another process may go on. A run that got nothing leaves nothing behind."""
        if self._new and self._created:  # before the lock goes: afterwards it may be another's
            self.text.unlink(missing_ok=True)
        self._file.close()

    def _write(self, records: list[Record]) -> None:
        batch = _lines(*[{"settings": self._settings}] * self._new, *records)
        self._crc = zlib.crc32(batch, self._crc)
        marker = _lines({MARKER: self.progress.asked, "crc32": self._crc})
        self._crc, batch = zlib.crc32(marker, self._crc), batch + marker
        if self._new:
            self._file.truncate(0)  # killed from here on, a run that is overwritten gets its text back
            os.fsync(self._file.fileno())
            with replacing(self.samples) as temporary:
                temporary.write_bytes(batch)
            self._new = False
        else:
            with open(self.samples, "ab", buffering=0) as file:
                _append(file, batch)
        _append(self._file, _text(record for record in records if record["rejected"] is None))

    def _start(self, overwrite: bool) -> None:
        """Take up the run that is there, if any. Nothing is changed before all of it is found in order."""
        # A file without a name is one that another process, which got nothing, took away at this moment.
        if not try_lock(self._file) or not os.fstat(self._file.fileno()).st_nlink:
            self._created = False
            raise UserError(f"`out`: another process is writing {self.text}; machines that share the work need `shard`")
        there, other = self.text.read_bytes(), "take another `out`, or `overwrite` to replace it"
        if overwrite or not (there or self.samples.exists()):
            return
        if not self.samples.exists():
            raise UserError(f"`out`: {self.text} is there, but no run of ours; {other}")
        settings, records, size = read_run(self.samples)
        if differs := difference(settings, self._settings):
            raise UserError(f"`out`: {self.text} holds samples of other settings ({differs}); {other}")
        try:
            for record in records:
                self.progress.add(record)
            text = _text(self.progress.kept)
        except (LookupError, TypeError, ValueError):
            raise _damaged(self.samples) from None
        if not text.startswith(there):
            problem = f"changed by hand (it is derived from {self.samples.name})"
            raise UserError(f"{self.text}: {problem}: move your version away, then start again")
        os.truncate(self.samples, size)
        self._crc = zlib.crc32(self.samples.read_bytes())
        _append(self._file, text[len(there) :])
        self._new = False


def read_run(path: Path) -> tuple[dict[str, Any], list[Record], int]:
    """The settings, the samples of whole batches, and the bytes of all that. Raises `UserError` if it is damaged."""
    lines = path.read_bytes().split(b"\n")[:-1]
    while lines and not lines[-1].startswith(f'{{"{MARKER}"'.encode()):
        lines.pop()
    try:
        header, *rest = map(parse_json, lines)
        records, crc = [record for record in rest if MARKER not in record], 0
        if rest[-1][MARKER] != len(records) or not all(_is_record(record) for record in records):
            raise ValueError
        for line, value in zip(lines, (header, *rest), strict=True):
            if MARKER in value and value.get("crc32", crc) != crc:
                raise ValueError
            crc = zlib.crc32(line + b"\n", crc)
        return dict(header["settings"]), records, sum(len(line) + 1 for line in lines)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _damaged(path) from None


def difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """The first setting of `here` that is another one there, in words; empty if there is none."""
    name = next((name for name in here if there.get(name) != here[name]), None)
    both = "the text is another one" if name in BY_DIGEST else name and f"{there.get(name)}, not {here[name]}"
    return f"`{name}`: {both}" if name else ""


def _is_record(record: Record) -> bool:
    types = all(type(record[name]) is kind for name, kind in NEEDED.items())
    return types and min(record["number"], record["attempt"], record["tokens"]) >= 0 and record["tokens"] < 2**40


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: changed by hand, or no run of ours; put it back, or `overwrite` to start anew")


def _lines(*records: Record) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def _text(records: Iterable[Record]) -> bytes:
    return "".join(record["text"] + DOCUMENT_SEPARATOR for record in records).encode()


def _append(file: Any, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())
