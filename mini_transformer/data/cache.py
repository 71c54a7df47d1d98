"""The folder where work on big texts is kept, and the hashes under which it is found again."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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

    def content(self, files: Iterable[Path]) -> str:
        """A hash of the content of some files. A file that looks untouched since it was last read is not read again."""
        index = self.folder / "files.json"
        try:
            known: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        hashes, changed = [], False
        for file in files:
            name, stamp = str(file.absolute()), self.stamp(file)
            if known.get(name, [None])[:3] != stamp:
                known[name] = [*stamp, _hash_file(file)]
                # within the same tick of the clock it may change once more without another stamp
                settled = time.time() - stamp[1] / 1e9 > SETTLED
                changed = changed or settled
                if not settled:
                    hashes.append(known.pop(name)[3])
                    continue
            hashes.append(known[name][3])
        if changed:
            with self.writing():
                write_json(index, known)
        return digest(hashes)

    def find(self, kind: str, key: str) -> Any:
        """The small value, of those that JSON can hold, that was kept under a name; None if there is none."""
        try:
            return json.loads((self.folder / kind / f"{key[:32]}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def keep(self, kind: str, key: str, value: Any) -> Any:
        """Keep a small value for `find`, and give it back."""
        with self.writing():
            (self.folder / kind).mkdir(exist_ok=True)
            write_json(self.folder / kind / f"{key[:32]}.json", value)
        return value

    @staticmethod
    def stamp(file: Path) -> list[int]:
        """What changes when a file does."""
        try:
            stat = file.stat()
        except FileNotFoundError:
            raise UserError(f"{file}: no such file") from None
        return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _hash_file(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time in, where the system can; the others wait."""
    try:
        import fcntl
    except ImportError:  # Windows: two that make the same thing at once both make it
        yield
        return
    with open(path, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"Waiting for another process that works on {path.stem}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
