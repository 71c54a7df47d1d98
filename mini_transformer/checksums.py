"""SHA256SUMS: the hashes of a folder's files, by which damage is noticed; `sha256sum --check` reads it, too.

A file is listed before it replaces another one, which stays listed until then: a kill in between is no damage. What is
not listed is not checked, as in a folder that is not ours.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mini_transformer.errors import UserError
from mini_transformer.files import replacing

SUMS = "SHA256SUMS"


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing_listed(path: Path) -> Iterator[Path]:
    """`replacing`, and the file is listed in its folder."""
    try:
        known = read(path.parent)
    except UserError:  # it is written anew
        known = {}
    before = known.get(path.name) or ({sha256(path)} if path.is_file() else set())
    with replacing(path) as temporary:
        yield temporary
        digest = sha256(temporary)
        write(path.parent, {**known, path.name: {digest, *before}})
    if before - {digest}:
        write(path.parent, {**known, path.name: {digest}})


def write(folder: Path, sums: dict[str, set[str]] | None = None) -> None:
    """Write the list of a folder; of all its files as they are, where none is given."""
    if sums is None:
        sums = {path.name: {sha256(path)} for path in folder.iterdir() if path.name != SUMS}
    lines = (f"{digest}  {name}\n" for name in sorted(sums) for digest in sorted(sums[name]))
    with replacing(folder / SUMS) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8", newline="")


def read(folder: Path) -> dict[str, set[str]]:
    """The hashes that each file may have; none if there is no list. Raises `UserError` if the list is damaged."""
    try:
        lines = (folder / SUMS).read_bytes().decode("utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except ValueError:
        lines = [""]
    sums = defaultdict(set)
    for line in lines:
        if not (match := re.fullmatch("([0-9a-f]{64}) [ *](.+)", line)):
            raise UserError(f"{folder / SUMS}: damaged; put it back, or remove it if the other files are in order")
        sums[match[2]].add(match[1])
    return sums


def is_whole(folder: Path) -> bool:
    """Whether a folder has a list, and the files on it as they are listed."""
    try:
        sums = read(folder)
        return bool(sums) and all(sha256(folder / name) in listed for name, listed in sums.items())
    except (UserError, OSError, ValueError):
        return False


def check(path: Path) -> None:
    """Raises `UserError` if a file is listed with other hashes, or listed and missing."""
    listed = read(path.parent).get(path.name)
    if listed and not (path.is_file() and sha256(path) in listed):
        what = "damaged, or changed since it was written" if path.is_file() else f"missing, but listed in {SUMS}"
        raise UserError(f"{path}: {what}; put the original back, or remove {SUMS} if this is what you want")
