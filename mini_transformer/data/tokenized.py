"""A corpus as tokens: in memory, or in a folder of the cache that is mapped into memory.

Either way it is two arrays: the tokens of all documents, one after the other (uint16 or uint32), and a table with a row
of five int64 for each document: tokens, characters, hash of the text, whether `mark_split` marked it, number of its
file. In the cache these are `tokens.bin` and `documents.bin`; `manifest.json` holds the rest. A list of hashes, checked
whenever the folder is read, says that it is whole. While it is made it is called `KEY.part`. A row is written when its
tokens are safe on disk: a killed process goes on after it.
"""

import hashlib
import io
import json
import mmap
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from mini_transformer import checksums
from mini_transformer.data.cache import digest
from mini_transformer.data.corpus import Corpus
from mini_transformer.data.sources import nothing_to_learn
from mini_transformer.data.stream import Integers, TokenDocuments
from mini_transformer.errors import UserError
from mini_transformer.files import write_json
from mini_transformer.runtime import log
from mini_transformer.text.documents import Piece
from mini_transformer.text.tokenizer import Tokenizer

FORMAT = 5
TOKENS, DOCUMENTS, MANIFEST = "tokens.bin", "documents.bin", "manifest.json"
COLUMNS = 5
BATCH = 1 << 21  # characters that are encoded together, on all cores, and then made safe
TITLE = 400  # tokens in which the first line of a document is looked for

MarkedPieces = Iterable[tuple[Piece, bool]]


class Title(NamedTuple):
    """The first line of a document and the name of its file."""

    text: str
    origin: str


@dataclass(frozen=True)
class TokenizedCorpus:
    """The tokens of a corpus."""

    train: TokenDocuments
    validation: TokenDocuments
    seen: set[int]  # ids that occur in the training text
    titles: list[Title]  # of the validation documents


@dataclass(frozen=True)
class _Store:
    """The two arrays, the names of the files, and the ids in unmarked and in marked documents."""

    documents: TokenDocuments
    table: Integers
    files: list[str]
    seen: list[list[int]]


def tokenize(corpus: Corpus, pieces: MarkedPieces, tokenizer: Tokenizer) -> TokenizedCorpus:
    """The tokens of a corpus that has a survey; from the cache if they are there.

    `pieces` are those of `corpus.read`, looked at only where the tokens must be made. Raises `UserError` if they cannot
    be read or the disk is full; nothing is left of the tokens then.
    """
    if not corpus.is_cached:
        tokens, table = io.BytesIO(), io.BytesIO()
        files = _write(tokens, table, pieces, tokenizer)
        return _split(corpus, _store(tokens.getbuffer(), table.getbuffer(), tokenizer, files), tokenizer)
    assert corpus.survey is not None
    key = digest(FORMAT, corpus.survey.fingerprint, corpus.cut, corpus.every, tokenizer.fingerprint)
    folder = corpus.cache.folder / "tokens" / key
    found = _read(folder, tokenizer)
    if found is not None:
        log(f"{corpus.sources}: {found.table[:, 0].sum():,} tokens from the cache, nothing has changed")
        return _split(corpus, found, tokenizer)
    with corpus.cache.locked("tokens", key, f"tokenizes {corpus.sources}"):
        return _split(corpus, _read(folder, tokenizer) or _make(folder, corpus, pieces, tokenizer), tokenizer)


def _store(tokens: Any, table: Any, tokenizer: Tokenizer, files: list[str], seen: Any = None) -> _Store:
    rows = np.frombuffer(table, np.int64).reshape(-1, COLUMNS)
    maps = [tokens] if isinstance(tokens, mmap.mmap) else []
    documents = TokenDocuments.of(np.frombuffer(tokens, tokenizer.dtype), rows, maps)
    if seen is None:
        seen = [documents.take(rows[:, 3] == mark).ids(tokenizer.vocab_size) for mark in (0, 1)]
    return _Store(documents, rows, files, seen)


def _split(corpus: Corpus, store: _Store, tokenizer: Tokenizer) -> TokenizedCorpus:
    if not len(store.table):
        raise nothing_to_learn(corpus.sources.paths)
    held_out = np.array([corpus.is_validation(bool(mark)) for mark in (0, 1)])
    chosen = held_out[store.table[:, 3]]
    validation = store.documents.take(chosen)
    titles = []
    for number, ids in zip(store.table[chosen, 4].tolist(), validation, strict=True):
        lines = map(str.strip, tokenizer.decode(ids[:TITLE].tolist()).splitlines())
        titles.append(Title(next(filter(None, lines), "")[:80], store.files[number]))
    seen = {i for mark in (0, 1) if not held_out[mark] for i in store.seen[mark]}
    return TokenizedCorpus(store.documents.take(~chosen), validation, seen, titles)


def _read(folder: Path, tokenizer: Tokenizer) -> _Store | None:
    """What a folder of the cache holds; None if it is not there, or not whole."""
    try:
        if not checksums.is_whole(folder):
            return None
        manifest = json.loads((folder / MANIFEST).read_bytes())
        table = (folder / DOCUMENTS).read_bytes()
        return _store(_mapped(folder / TOKENS), table, tokenizer, manifest["files"], manifest["seen"])
    except OSError:  # another process may make it anew at this moment
        return None


def _mapped(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _make(folder: Path, corpus: Corpus, pieces: MarkedPieces, tokenizer: Tokenizer) -> _Store:
    """Make a folder of the cache, or go on with what a killed process began."""
    part, size, terminal = folder.with_suffix(".part"), corpus.sources.text_size, sys.stderr.isatty()
    shutil.rmtree(folder, ignore_errors=True)
    part.mkdir(exist_ok=True)
    try:
        if done := _truncate(part, np.dtype(tokenizer.dtype).itemsize):
            log(f"Going on after {done:,} documents that an interrupted run has tokenized")
        if not terminal:
            log(f"{corpus.sources}: tokenizing{f', {size:,} bytes' if size else ''}")
        bar = tqdm(total=size, unit="B", unit_scale=True, desc=str(corpus.sources), disable=not terminal)
        with bar, open(part / TOKENS, "ab") as tokens, open(part / DOCUMENTS, "ab") as documents:
            files = _write(tokens, documents, pieces, tokenizer, done, bar)
        table = (part / DOCUMENTS).read_bytes()
        if not table:
            raise nothing_to_learn(corpus.sources.paths)
        store = _store(_mapped(part / TOKENS), table, tokenizer, files)
        manifest = {
            "tokenizer": tokenizer.fingerprint,
            "documents": len(store.table),
            "tokens": int(store.table[:, 0].sum()),
            "files": files,
            "seen": store.seen,
        }
        write_json(part / MANIFEST, manifest)
        checksums.write(part)
        part.rename(folder)
    except (UserError, OSError):
        shutil.rmtree(part, ignore_errors=True)
        raise
    return store


def _truncate(part: Path, item_size: int) -> int:
    """Cut both files back to the documents that are safe; returns their number."""
    for name in (TOKENS, DOCUMENTS):
        (part / name).touch()
    size = (part / DOCUMENTS).stat().st_size // (8 * COLUMNS)
    counts = np.fromfile(part / DOCUMENTS, np.int64, size * COLUMNS).reshape(-1, COLUMNS)[:, 0]
    ends = np.cumsum(counts) * item_size
    # a document has a token at least: rows of zeros are what a power cut may leave
    good = (counts > 0) & (ends <= (part / TOKENS).stat().st_size)
    done = size if good.all() else int(np.argmin(good))
    os.truncate(part / TOKENS, int(ends[done - 1]) if done else 0)
    os.truncate(part / DOCUMENTS, done * 8 * COLUMNS)
    return done


def _remaining(pieces: MarkedPieces, done: int, files: list[str], bar: Any) -> Iterator[list[tuple[Piece, bool, int]]]:
    """The pieces after `done` documents, with the number of their file, as batches. `files` takes down the names."""
    document, size = 0, 0
    batch: list[tuple[Piece, bool, int]] = []
    for piece, marked in pieces:
        if not files or files[-1] != piece.origin:
            files.append(piece.origin)
        if document >= done:
            batch.append((piece, marked, len(files) - 1))
            size += len(piece.text)
        document += piece.last
        if bar is not None:
            bar.update(len(piece.text.encode()))
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def _write(
    tokens: IO[bytes], table: IO[bytes], pieces: MarkedPieces, tokenizer: Tokenizer, done: int = 0, bar: Any = None
) -> list[str]:
    """Write both arrays, from document number `done` on. Returns the names of the files."""
    files: list[str] = []
    count, characters, text_hash = 0, 0, hashlib.blake2b(digest_size=8)
    for batch in _remaining(pieces, done, files, bar):
        rows = []
        encoded = tokenizer.encode_batch([piece.text for piece, _, _ in batch])
        for (piece, marked, file), ids in zip(batch, encoded, strict=True):
            tokens.write(ids.tobytes())
            count, characters = count + len(ids), characters + len(piece.text)
            text_hash.update(piece.text.encode())
            if piece.last:
                number = int.from_bytes(text_hash.digest(), "little", signed=True)
                rows.append([count, characters, number, marked, file])
                count, characters, text_hash = 0, 0, hashlib.blake2b(digest_size=8)
        _sync(tokens)
        table.write(np.array(rows, dtype=np.int64).tobytes())
        _sync(table)
    return files


def _sync(file: IO[bytes]) -> None:
    if not isinstance(file, io.BytesIO):
        file.flush()
        os.fsync(file.fileno())
