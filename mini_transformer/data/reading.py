"""From bytes to text: compressed files, encodings, line ends."""

import bz2
import codecs
import gzip
import importlib
import io
import lzma
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mini_transformer.errors import UserError

CHUNK = 1 << 20  # bytes that are read at once
# Python lists these among its text encodings, but no text file is kept in one, and some of them make lone surrogates
_NOT_FOR_FILES = ("utf-7", "idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape")
_WIDE = ("utf-16", "utf-32")  # in all other encodings a zero byte means that the file is not text


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


def _open(path: Path) -> IO[bytes]:
    """A file of bytes, decompressed if its name says so."""
    return COMPRESSED.get(path.suffix.lower(), open)(path, "rb")


def read_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed, in chunks. Raises `UserError` if it is missing, damaged or unreadable."""
    try:
        with _open(path) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a text file") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UserError:
        raise
    except Exception as error:  # each compression has its own errors
        if is_compressed(path) and getattr(error, "errno", None) is None:
            raise UserError(f"{path}: cut short or damaged ({error})") from None
        if not isinstance(error, OSError):
            raise
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def find_codec(encoding: str) -> codecs.CodecInfo:
    """The codec of an encoding, by any of its names. Raises `UserError` if text files are not kept in it."""
    try:
        codec = codecs.lookup(encoding)
    except (LookupError, UnicodeError, ValueError):
        codec = None
    if codec is None or not codec._is_text_encoding or codec.name.replace("_", "-") in _NOT_FOR_FILES:
        raise UserError(f"`encoding`: {encoding!r} is not a known encoding; try utf-8, latin-1 or cp1252")
    return codec


def decode(path: Path, encoding: str) -> Iterator[str]:
    """The text of a file as is, in chunks. Raises `UserError` if it is not text of that encoding."""
    codec = find_codec(encoding)
    decoder, wide = codec.incrementaldecoder(), codec.name.startswith(_WIDE)
    offset, utf_16 = 0, False

    def error(what: str) -> UserError:
        if utf_16 and not wide:
            return UserError(f"{path}: not {encoding}: it begins as UTF-16 does; `encoding` utf-16 reads it")
        return UserError(f"{path}: {what}")

    def decoded(data: bytes, final: bool) -> str:
        pending = decoder.getstate()[0]
        advice = "if the file is in another encoding, name it (for example `encoding` latin-1)"
        try:
            return decoder.decode(data, final)
        except UnicodeDecodeError as fault:
            place, byte = offset - len(pending) + fault.start, fault.object[fault.start]
            raise error(f"not {encoding}: byte 0x{byte:02x} at offset {place}; {advice}") from None
        except UnicodeError as fault:  # UTF-16 or UTF-32 without the mark at its beginning
            raise error(f"not {encoding} ({fault}); {advice}") from None

    for chunk in read_chunks(path):
        if offset == 0:
            utf_16 = chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if not wide and b"\0" in chunk:
            raise error(f"a binary file (zero byte at offset {offset + chunk.index(0)}), not text")
        yield decoded(chunk, final=False)
        offset += len(chunk)
    yield decoded(b"", final=True)


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
