"""Files and folders that appear whole or not at all, and JSON in files."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from mini_transformer.errors import UserError

MAX_JSON = 25_000_000  # bytes of a JSON file; its values may take as much as 25 times that
Replacing = Callable[[Path], AbstractContextManager[Path]]


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
    _sync(path.parent)  # the new name itself is on disk only when its folder is


def publish(temporary: Path, path: Path) -> None:
    """Let a written folder replace what is at `path`, in one step and safe on disk."""
    for file in temporary.iterdir():
        _sync(file)
    _sync(temporary)
    remove(path)
    os.replace(temporary, path)
    _sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file, or a folder: its name goes first, so that no half of it has that name."""
    if path.is_dir():
        temporary = path.with_name(f".{path.name}.removed.temporary")
        os.replace(path, temporary)
        shutil.rmtree(temporary)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return
    file = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def disk_error(error: BaseException, path: Path) -> OSError | None:
    """The error of the system behind one of a library that was writing to `path`; None if there is none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        if number := re.search(r"\(os error (\d+)\)", str(cause)):  # as safetensors tells it
            cause = OSError(int(number[1]), os.strerror(int(number[1])))
        else:
            cause = cause.__context__
    return cause and OSError(cause.errno, cause.strerror, str(path))


def is_full(error: OSError) -> bool:
    """Whether the disk, or what a user may have of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def parse_json(content: bytes) -> Any:
    """The value of JSON, whoever wrote it. Raises `ValueError` if it is none, too large or nested too deeply."""
    if len(content) > MAX_JSON:
        raise ValueError(f"more than {MAX_JSON:,} bytes")
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises `UserError` if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return parse_json(file.read(MAX_JSON + 1))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def write_json(path: Path, value: Any, replacing: Replacing = replacing) -> None:
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
