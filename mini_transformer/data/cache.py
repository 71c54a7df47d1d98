"""The folder where work on big texts is kept, and the hashes under which it is found again."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mini_transformer.errors import UserError
from mini_transformer.files import write_json

SETTLED = 2.0  # seconds after which another change to a file has another time stamp


def default_folder() -> Path:
    """Where this user's system keeps what can be made again."""
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home()))
    else:
        base = Path.home() / ".cache"
    return base / "mini-transformer"


def digest(*parts: Any) -> str:
    """A hash of some values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True, sort_keys=True).encode()).hexdigest()


class Cache:
    """A folder for what can be made again. Made when first written to."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder or default_folder()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn a full or read-only disk into one clear line."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise UserError(
                f"--cache-dir: {self.folder} cannot be written ({error.strerror or error}); name another place"
            ) from None

    def content(self, files: Iterable[Path], remember: bool) -> str:
        """A hash of the content of some files. A file that looks untouched since it was last read is not read again."""
        index = self.folder / "files.json"
        known = _read_json(index) or {}
        hashes, changed = [], False
        for file in files:
            name, stamp = str(file.absolute()), self.stamp(file)
            match known.get(name):
                case [*last, str(content)] if last == stamp:
                    hashes.append(content)
                case _:
                    hashes.append(_hash_file(file))
                    # within the same tick of the clock it may change once more without another stamp
                    if time.time() - stamp[1] / 1e9 > SETTLED:
                        known[name], changed = [*stamp, hashes[-1]], True
        if changed and remember:
            with suppress(UserError), self.writing(), locked(self.folder / "files.lock"):
                # where it cannot be kept, it is read again next time
                write_json(index, (_read_json(index) or {}) | known)
        return digest(hashes)

    def find(self, kind: str, key: str, types: Mapping[str, type]) -> dict[str, Any] | None:
        """Some facts that were kept under a name, of these names and types; None if there are none."""
        found = _read_json(self.folder / kind / f"{key[:32]}.json")
        return found if found and {name: type(fact) for name, fact in found.items()} == types else None

    def keep(self, kind: str, key: str, value: dict[str, Any]) -> dict[str, Any]:
        """Keep some facts for `find`, and give them back."""
        place = self.folder / kind
        with self.writing():
            place.mkdir(exist_ok=True)
            with locked(place / f"{key[:32]}.lock"):
                write_json(place / f"{key[:32]}.json", value)
        return value

    @staticmethod
    def stamp(file: Path) -> list[int]:
        """What changes when a file does."""
        try:
            stat = file.stat()
        except FileNotFoundError:
            raise UserError(f"{file}: no such file") from None
        return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read_json(path: Path) -> dict[str, Any] | None:
    """What a file of the cache holds; None if it is not there, or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _hash_file(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


@contextmanager
def locked(path: Path, work: str = "") -> Iterator[None]:
    """Let one process at a time in, where the system can; the others wait, and say so if it is for long `work`."""
    try:
        import fcntl
    except ImportError:  # Windows: two that make the same thing at once both make it
        yield
        return
    with open(path, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if work:
                print(f"Waiting for another process that {work}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
