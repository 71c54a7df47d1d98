"""What can be read: text files, folders and patterns of them, as documents (`records.py` reads other formats).

Also the division of documents into those to train and those to validate on.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mini_transformer.data import records
from mini_transformer.data.formats import kind_of
from mini_transformer.data.reading import COMPRESSED, decode, is_compressed, normalised
from mini_transformer.errors import UserError
from mini_transformer.text.documents import Piece, stream_documents

VALIDATION_SHARE = 0.1
EVERY = round(1 / VALIDATION_SHARE)  # of ten documents or more, the last of each ten is for validation
TEXTS = (".txt", *(f".txt{packed}" for packed in COMPRESSED))

_told: set[Path] = set()  # folders whose other files have been told: each is read more than once


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


def _files_below(folder: Path) -> list[Path]:
    """All files of a folder and its sub-folders but those of a model: what it wrote is not to be learnt from."""
    files: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if "run.json" in names or real in seen:  # links may lead round in a circle
            folders.clear()
        else:
            seen.add(real)
            folders.sort()
            files += (Path(place, name) for name in names)
    return sorted(file for file in files if file.is_file())


def _files_of_a_kind(folder: Path) -> list[Path]:
    """All texts of a folder; where there are none, all its files of records. Texts come in one form or the other."""
    everything = _files_below(folder)
    texts = [file for file in everything if file.name.lower().endswith(TEXTS)]
    others = [file for file in everything if kind_of(file)]
    if texts and others and folder not in _told:
        _told.add(folder)
        print(f"{folder}: {len(others)} files of records left out (as {others[0].name}); name them to read them, too")
    if not texts and not others:
        raise UserError(f"{folder}: the folder holds no .txt file")
    return texts or others


def text_files(path: Path) -> list[Path]:
    """The file itself, or all `.txt` files of a folder and its sub-folders, in the order of their names.

    A folder without any is looked through for files of records. A path that is none but has `*`, `?` or `[` in it is a
    pattern, and stands for the files that fit. Raises `UserError` where there is no file, or none that can be read
    more than once.
    """
    if path.is_dir():
        return _files_of_a_kind(path)
    if not path.exists() and glob.has_magic(str(path)) and not records.is_hub(path):
        files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not files:
            raise UserError(f"{path}: no file fits this pattern")
        return files
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a regular file; a text is read more than once, so save it as a file first")
    return [path]


def stream_source(path: Path, reading: Reading) -> Iterator[Piece]:
    """All documents of a source, piece by piece, in bounded memory. Raises `UserError` for what cannot be read."""
    if records.is_hub(path):
        yield from records.stream_records(path, reading)
        return
    for file in text_files(path):
        if kind_of(file):
            yield from records.stream_records(file, reading)
        else:
            yield from stream_documents(normalised(decode(file, reading.encoding)), file.name)


def is_packed(path: Path) -> bool:
    """Whether a source may hold more text than it has bytes."""
    if records.is_hub(path):
        return True
    return any(is_compressed(file) or kind_of(file) for file in text_files(path))


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
