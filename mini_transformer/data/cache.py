"""The data cache: a folder for what can be made again (tokens, tokenizers, surveys), under hashes of its inputs."""

import hashlib
import json
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from mini_transformer.errors import UserError
from mini_transformer.files import read_json, write_json


def digest(*parts: Any) -> str:
    """A hash of values that JSON can hold: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True, sort_keys=True).encode()).hexdigest()[:32]


class DataCache:
    """The folder is made when something is first written to it."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder or user_cache_path("mini-transformer", appauthor=False)

    @contextmanager
    def writing(self, kind: str) -> Iterator[Path]:
        """The sub-folder of one kind, to write to. Raises `UserError` for a full or read-only disk."""
        try:
            (self.folder / kind).mkdir(parents=True, exist_ok=True)
            yield self.folder / kind
        except OSError as error:
            raise UserError(
                f"`cache_dir`: {self.folder} cannot be written ({error.strerror or error}); choose another place"
            ) from None

    def find(self, kind: str, key: str, names: Collection[str]) -> dict[str, Any] | None:
        """The values of these names that were kept under a key; None if there are none, or damaged ones."""
        try:
            found = read_json(self.folder / kind / f"{key}.json")
            values = {name: found[name] for name in names}
            return values if found["digest"] == digest(values) else None
        except (UserError, LookupError, TypeError):
            return None

    def keep(self, kind: str, key: str, values: dict[str, Any]) -> None:
        """Keep some values for `find`."""
        with self.locked(kind, key) as folder:
            write_json(folder / f"{key}.json", {**values, "digest": digest(values)})

    @contextmanager
    def locked(self, kind: str, key: str, work: str = "") -> Iterator[Path]:
        """Let one process at a time work on a key; the others wait, and say so if `work` says on what."""
        with self.writing(kind) as folder:
            lock = FileLock(folder / f"{key}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if work:
                    print(f"Waiting for another process that {work}", file=sys.stderr, flush=True)
                lock.acquire()
            try:
                yield folder
            finally:
                lock.release()
