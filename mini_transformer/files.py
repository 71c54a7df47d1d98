"""Files that appear whole or not at all, and JSON in them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mini_transformer.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what is written there replaces `path` in one step, safe on disk.

    If the body raises, `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.temporary")
    try:
        temporary.touch()
        permissions = temporary.stat().st_mode
        yield temporary
        temporary.chmod(permissions)  # those of any new file, whoever wrote to it
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name itself is on disk only when its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises `UserError` if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    # the name of a file need not be UTF-8: its lone surrogates become the escapes of JSON
    content = json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", errors="backslashreplace")
    with replacing(path) as temporary:
        temporary.write_bytes(content + b"\n")


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file for this process alone; False if another one has it. The lock goes with the process."""
    try:
        import fcntl
    except ImportError:  # Windows: nobody is kept out
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
