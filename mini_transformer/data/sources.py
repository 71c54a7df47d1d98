"""What can be read: text files, folders and patterns of them, as documents (`records.py` reads other formats).

Also the division of documents into those to train and those to validate on.
"""

import bz2
import codecs
import glob
import gzip
import importlib
import io
import lzma
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from mini_transformer.data import records
from mini_transformer.data.documents import Piece, stream_documents
from mini_transformer.errors import UserError

VALIDATION_SHARE = 0.1
EVERY = round(1 / VALIDATION_SHARE)  # of ten documents or more, the last of each ten is for validation
CHUNK = 1 << 20  # bytes that are read at once
# encodings in which a zero byte means that the file is no text
_NO_ZERO = ("utf-8", "utf8", "utf-8-sig", "latin-1", "cp1252")


def _open_zst(path: Path, mode: str) -> Any:
    """A file that is packed by zstd, which is in Python itself from 3.14 on."""
    try:
        module = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    except ImportError:
        raise UserError(f"{path}: needs the Python package 'backports.zstd': pip install backports.zstd") from None
    return module.open(path, mode)


COMPRESSED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst}


@dataclass(frozen=True)
class Reading:
    """How sources are read."""

    encoding: str = "utf-8"
    text_field: str = "text"
    max_unreadable: int = 100


class Document(NamedTuple):
    """One document and the file that it stands in."""

    text: str
    origin: str


def _open(path: Path) -> IO[bytes]:
    """A file of bytes, unpacked if its name says that it is compressed."""
    return COMPRESSED.get(path.suffix, open)(path, "rb")


def _read_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file. Raises `UserError` if it is not there, damaged, or cannot be read."""
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
    except Exception as error:  # each packing has its own errors
        if path.suffix in COMPRESSED and getattr(error, "errno", None) is None:
            raise UserError(f"{path}: cut short or damaged ({error})") from None
        if not isinstance(error, OSError):
            raise
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _decode(path: Path, encoding: str) -> Iterator[str]:
    """The text of a file as it stands, in chunks. Raises `UserError` if it is no text of that encoding."""
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        decoder.decode(b"", False)
    except (LookupError, UnicodeError, ValueError, TypeError):
        raise UserError(f"--encoding: {encoding!r} is not a known encoding; try utf-8, latin-1 or cp1252") from None
    offset, no_zero = 0, encoding.lower().replace("_", "-") in _NO_ZERO

    def decode(data: bytes, final: bool) -> str:
        pending = decoder.getstate()[0]
        try:
            return decoder.decode(data, final)
        except UnicodeDecodeError as error:
            place = offset - len(pending) + error.start
            raise UserError(
                f"{path}: not {encoding}: byte 0x{error.object[error.start]:02x} at offset {place}; "
                "if the file is in another encoding, name it (for example --encoding latin-1)"
            ) from None

    for chunk in _read_chunks(path):
        if no_zero and b"\0" in chunk:
            raise UserError(f"{path}: a binary file (zero byte at offset {offset + chunk.index(0)}), not text")
        yield decode(chunk, final=False)
        offset += len(chunk)
    yield decode(b"", final=True)


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of one file as it stands, line ends included. Raises `UserError` if it cannot be read as text."""
    return "".join(_decode(path, encoding))


def _normalised(chunks: Iterable[str]) -> Iterator[str]:
    """The same with line feeds for line ends, and without a byte-order mark."""
    newlines, first = io.IncrementalNewlineDecoder(None, translate=True), True
    for chunk in chunks:
        if first and chunk:
            chunk, first = chunk.removeprefix("\ufeff"), False
        yield newlines.decode(chunk)
    yield newlines.decode("", final=True)


def _files_below(folder: Path) -> list[Path]:
    """All files of a folder and its sub-folders but those of a model: what it wrote is not to be learnt from."""
    files: list[Path] = []
    for place, folders, names in os.walk(folder):
        if "run.json" in names:
            folders.clear()
        else:
            files += (Path(place, name) for name in names)
    return sorted(file for file in files if file.is_file())


def text_files(path: Path) -> list[Path]:
    """The file itself, or all `.txt` files of a folder and its sub-folders, in the order of their names.

    A folder without any is looked through for files of records. A path that is none but has `*`, `?` or `[` in it is a
    pattern, and stands for the files that fit.
    """
    if path.is_dir():
        suffixes = (".txt", *(f".txt{packed}" for packed in COMPRESSED))
        everything = _files_below(path)
        files = [p for p in everything if p.name.endswith(suffixes)] or [p for p in everything if records.kind_of(p)]
        if not files:
            raise UserError(f"{path}: the folder holds no .txt file")
        return files
    if not path.exists() and glob.has_magic(str(path)) and not records.is_hub(path):
        files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not files:
            raise UserError(f"{path}: no file fits this pattern")
        return files
    return [path]


def stream_source(path: Path, reading: Reading) -> Iterator[Piece]:
    """All documents of a source, piece by piece, in bounded memory. Raises `UserError` for what cannot be read."""
    if records.is_hub(path):
        yield from records.stream_records(path, reading)
        return
    for file in text_files(path):
        if records.kind_of(file):
            yield from records.stream_records(file, reading)
        else:
            yield from stream_documents(_normalised(_decode(file, reading.encoding)), file.name)


def is_packed(path: Path) -> bool:
    """Whether a source may hold more text than it has bytes."""
    if records.is_hub(path):
        return True
    return any(file.suffix in records.PACKED or records.kind_of(file) for file in text_files(path))


def stored_files(path: Path) -> list[Path]:
    """The files on this machine that make a source; none if it lies on the Hub."""
    if not records.is_hub(path):
        return text_files(path)
    folder = records.hub_folder(path)
    return sorted(p for p in folder.rglob("*") if p.is_file()) if folder else []


def join_pieces(pieces: Iterable[Piece]) -> Iterator[Document]:
    """Whole documents."""
    parts: list[str] = []
    for piece in pieces:
        parts.append(piece.text)
        if piece.last:
            yield Document("".join(parts), piece.origin)
            parts = []


def nothing_to_learn(paths: Iterable[Path]) -> UserError:
    """The error for sources without any text."""
    return UserError(f"{', '.join(map(str, paths))}: empty: there is no text to learn from")


def read_documents(paths: tuple[Path, ...], encoding: str = "utf-8") -> list[str]:
    """All documents of some sources. Line ends become line feeds; a byte-order mark is dropped.

    Raises `UserError` if there is no text at all.
    """
    reading = Reading(encoding)
    documents = [document.text for path in paths for document in join_pieces(stream_source(path, reading))]
    if not documents:
        raise nothing_to_learn(paths)
    return documents


@dataclass(frozen=True)
class Split:
    """Documents to train on, and documents to validate on."""

    train: list[str]
    validation: list[str]


def split_validation(documents: list[str]) -> Split:
    """Set a tenth of the documents aside, evenly spread; of fewer than ten documents, the last tenth of the text."""
    if len(documents) >= EVERY:
        validation = documents[EVERY - 1 :: EVERY]
        train = [document for i, document in enumerate(documents) if i % EVERY != EVERY - 1]
        return Split(train, validation)
    keep = round(sum(map(len, documents)) * (1 - VALIDATION_SHARE))
    train, validation = [], []
    for document in documents:
        cut = max(0, min(len(document), keep))
        keep -= cut
        train += [document[:cut]] if document[:cut].strip() else []
        validation += [document[cut:]] if document[cut:].strip() else []
    return Split(train, validation)
