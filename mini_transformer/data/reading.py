"""From bytes to text: compressed files, encodings, line ends."""

import bz2
import codecs
import gzip
import importlib
import io
import lzma
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import EISDIR, ENOENT
from itertools import chain
from pathlib import Path
from typing import Any

from mini_transformer.errors import UserError

CHUNK = 1 << 20  # bytes that are read at once
# Python lists these among its text encodings, but no text file is kept in one, and some of them make lone surrogates
_NOT_FOR_FILES = ("utf-7", "idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape")
_WIDE = ("utf-16", "utf-32")  # in all other encodings a zero byte means that the file is not text
_MARKS = (  # at the beginning of a file; that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = re.compile("[\x80-\x9f]")  # of latin-1, where Windows has œ, … and ’


@dataclass(frozen=True)
class ReaderConfig:
    """How sources are read: see `config.TextConfig` and `config.RunConfig`, whose settings these are."""

    encoding: str = "utf-8"
    text_field: str = "text"
    max_unreadable: int = 100


def _open_zst(path: Path, mode: str) -> Any:
    """A file compressed with zstd, which Python itself reads from 3.14 on."""
    try:
        module = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    except ImportError:
        raise UserError(f"{path}: needs the Python package 'backports.zstd': pip install backports.zstd") from None
    return module.open(path, mode)


COMPRESSED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst}


def is_compressed(path: Path) -> bool:
    """Whether a file's name says that it is compressed."""
    return path.suffix.lower() in COMPRESSED


def read_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed, in chunks. Raises `UserError` if it is missing, damaged or unreadable."""
    try:
        with COMPRESSED.get(path.suffix.lower(), open)(path, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except UserError:
        raise
    except Exception as error:  # each compression has its own errors
        why = {ENOENT: "no such file", EISDIR: "is a folder, not a text file"}.get(getattr(error, "errno", 0) or 0)
        if why is None and is_compressed(path) and getattr(error, "errno", None) is None:
            why = f"cut short or damaged ({error})"
        if why is None and not isinstance(error, OSError):
            raise
        raise UserError(f"{path}: {why or f'cannot be read ({error})'}") from None


def decode(path: Path, encoding: str) -> Iterator[str]:
    """The text of a file as is, in chunks. Raises `UserError` if it is not text of that encoding."""
    codec, offset = None, 0
    with suppress(LookupError, UnicodeError, ValueError):
        codec = codecs.lookup(encoding)
    if codec is None or not codec._is_text_encoding or codec.name.replace("_", "-") in _NOT_FOR_FILES:
        raise UserError(f"`encoding`: {encoding!r} is not a known encoding; try utf-8, latin-1 or cp1252")
    decoder, wide = codec.incrementaldecoder(), codec.name.startswith(_WIDE)
    for chunk in chain(read_chunks(path), (b"",)):
        begins = "" if offset else next((name for mark, name in _MARKS if chunk.startswith(mark)), "")
        if begins and not codec.name.startswith(begins):
            raise UserError(f"{path}: not {encoding}: it begins as {begins} does; `encoding` {begins} reads it")
        if not wide and b"\0" in chunk:
            raise UserError(f"{path}: a binary file (zero byte at offset {offset + chunk.index(0)}), not text")
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeError as fault:
            why = f" ({fault})"  # UTF-16 or UTF-32 without the mark at its beginning
            if isinstance(fault, UnicodeDecodeError):
                why = f": byte 0x{fault.object[fault.start]:02x} at offset {offset - pending + fault.start}"
            advice = "if the file is in another encoding, name it (`encoding` cp1252 is that of Windows)"
            raise UserError(f"{path}: not {encoding}{why}; {advice}") from None
        if codec.name == "iso8859-1" and (control := _CONTROLS.search(text)):
            at = f"byte 0x{ord(control[0]):02x} at offset {offset + control.start()} is no character there"
            raise UserError(
                f"{path}: not {encoding}: {at}; `encoding` cp1252, that of Windows, has letters in its place"
            )
        yield text
        offset += len(chunk)


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of one file as is, line ends included. Raises `UserError` if it cannot be read as text."""
    return "".join(decode(path, encoding))


def normalise(chunks: Iterable[str]) -> Iterator[str]:
    """The same text with line feeds for line ends, and without a byte-order mark."""
    newlines, first = io.IncrementalNewlineDecoder(None, translate=True), True
    for chunk in chunks:
        if first and chunk:
            chunk, first = chunk.removeprefix("\ufeff"), False
        yield newlines.decode(chunk)
    yield newlines.decode("", final=True)


def read_lines(path: Path, encoding: str) -> Iterator[str]:
    """The lines of a file, each with its line feed (the last may have none), in bounded memory."""
    parts: list[str] = []
    for chunk in normalise(decode(path, encoding)):
        head, *rest = chunk.split("\n")
        parts.append(head)
        for line in rest:
            yield "".join(parts) + "\n"
            parts = [line]
    if any(parts):
        yield "".join(parts)
