"""A corpus as tokens: in memory, or in a folder of the cache that is mapped into memory.

Either way it is two arrays: the tokens of all documents, one after the other (uint16 or uint32), and a table with a row
of four int64 for each document: tokens, characters, hash of the text, and whether `mark_split` marked it. In the cache
these are `tokens.bin` and `documents.bin`; `manifest.json` says that the folder is whole. While it is made it is called
`KEY.part`. A row is written when the tokens before it are safe on disk, so a killed process goes on after the last row.
"""

import hashlib
import io
import json
import mmap
import os
import shutil
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mini_transformer.data.cache import digest
from mini_transformer.data.corpus import Corpus
from mini_transformer.data.sources import nothing_to_learn
from mini_transformer.data.tokens import Integers, TokenDocuments
from mini_transformer.errors import UserError
from mini_transformer.files import write_json
from mini_transformer.runtime import log
from mini_transformer.text.documents import Piece
from mini_transformer.text.tokenizer import Tokenizer

FORMAT = 3
TOKENS, DOCUMENTS, MANIFEST = "tokens.bin", "documents.bin", "manifest.json"
COLUMNS = 4
BATCH = 1 << 21  # characters that are encoded together, on all cores, and then made safe
TITLE = 400  # tokens in which the first line of a document is looked for

MarkedPieces = Iterable[tuple[Piece, bool]]


class Title(NamedTuple):
    """The first line of a document and the name of its file."""

    text: str
    origin: str


@dataclass(frozen=True)
class TokenizedSplit:
    """Documents as tokens, and of the text of each its length in characters and its hash."""

    tokens: TokenDocuments
    lengths: Integers
    hashes: Integers

    @property
    def characters(self) -> int:
        """Of all documents and the separators between them."""
        return int(self.lengths.sum()) + 3 * len(self.lengths)

    def take(self, chosen: NDArray[np.bool]) -> "TokenizedSplit":
        """The documents that are marked."""
        return TokenizedSplit(self.tokens.take(chosen), self.lengths[chosen], self.hashes[chosen])


@dataclass(frozen=True)
class TokenizedCorpus:
    """The tokens of a corpus."""

    train: TokenizedSplit
    validation: TokenizedSplit
    seen: list[int]  # ids that occur in the training text
    titles: list[Title]  # of the validation documents


@dataclass(frozen=True)
class _Arrays:
    """The two arrays, where the documents of each file begin, and the ids in unmarked and in marked documents."""

    documents: TokenDocuments
    table: Integers
    origins: list[tuple[str, int]]
    seen: list[list[int]]


def tokenize(corpus: Corpus, pieces: MarkedPieces, tokenizer: Tokenizer) -> TokenizedCorpus:
    """The tokens of a corpus, whose text has been read once; from the cache if they are there.

    `pieces` are those of `corpus.read`, looked at only where the tokens must be made. Raises `UserError` if they cannot
    be read or the disk is full; nothing is left of the tokens then.
    """
    if not corpus.is_cached:
        tokens, table = io.BytesIO(), io.BytesIO()
        origins = _write(tokens, table, pieces, tokenizer)
        rows, documents = _documents(tokens.getbuffer(), table.getbuffer(), tokenizer.dtype)
        return _split(corpus, _Arrays(documents, rows, origins, _seen(documents, rows, tokenizer)), tokenizer)
    assert corpus.survey is not None
    key = digest(FORMAT, corpus.survey.fingerprint, corpus.cut, tokenizer.fingerprint)
    folder = corpus.cache.folder / "tokens" / key
    found = _read(folder)
    if found is None:
        with corpus.cache.locked("tokens", key, f"tokenizes {corpus.sources}"):
            found = _read(folder) or _make(folder, corpus, pieces, tokenizer)
    else:
        log(f"{corpus.sources}: {found.table[:, 0].sum():,} tokens from the cache, nothing has changed")
    return _split(corpus, found, tokenizer)


def _documents(tokens: Any, table: Any, dtype: Any, maps: Sequence[mmap.mmap] = ()) -> tuple[Integers, TokenDocuments]:
    rows = np.frombuffer(table, np.int64).reshape(-1, COLUMNS)
    return rows, TokenDocuments.of(np.frombuffer(tokens, dtype), rows[:, 0], maps)


def _seen(documents: TokenDocuments, rows: Integers, tokenizer: Tokenizer) -> list[list[int]]:
    return [documents.take(rows[:, 3] == mark).ids(tokenizer.vocab_size) for mark in (False, True)]


def _split(corpus: Corpus, arrays: _Arrays, tokenizer: Tokenizer) -> TokenizedCorpus:
    if not len(arrays.table):
        raise nothing_to_learn(corpus.sources.paths)
    _, lengths, hashes, marked = arrays.table.T
    everything = TokenizedSplit(arrays.documents, lengths, hashes)
    is_validation = np.array([corpus.is_validation(mark) for mark in (False, True)])
    held_out = is_validation[marked]
    validation = everything.take(held_out)
    titles = []
    for number, ids in zip(np.flatnonzero(held_out).tolist(), validation.tokens, strict=True):
        lines = tokenizer.decode(ids[:TITLE].tolist()).splitlines()
        title = next((line.strip() for line in lines if line.strip()), "")
        origin = bisect_right(arrays.origins, number, key=lambda origin: origin[1]) - 1
        titles.append(Title(title[:80], arrays.origins[origin][0]))
    seen = set().union(*(ids for ids, is_held in zip(arrays.seen, is_validation, strict=True) if not is_held))
    return TokenizedCorpus(everything.take(~held_out), validation, sorted(seen), titles)


def _read(folder: Path) -> _Arrays | None:
    """The arrays of a folder of the cache; None if it is not there, or not whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        with open(folder / TOKENS, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        table = (folder / DOCUMENTS).read_bytes()
        rows, documents = _documents(mapped, table, np.dtype(manifest["dtype"]), [mapped])
        whole = (FORMAT, len(documents.buffers[0]), hashlib.sha256(table).hexdigest())
        if (manifest["format"], manifest["tokens"], manifest["table"]) != whole:
            return None
        return _Arrays(documents, rows, [(name, first) for name, first in manifest["origins"]], manifest["seen"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _make(folder: Path, corpus: Corpus, pieces: MarkedPieces, tokenizer: Tokenizer) -> _Arrays:
    """Make a folder of the cache, or go on with what a killed process began."""
    part = folder.with_suffix(".part")
    size = corpus.sources.text_size
    try:
        shutil.rmtree(folder, ignore_errors=True)
        part.mkdir(exist_ok=True)
        done = _truncate(part, np.dtype(tokenizer.dtype).itemsize)
        if done:
            log(f"Going on after {done:,} documents that an interrupted run has tokenized")
        if not sys.stderr.isatty():
            log(f"{corpus.sources}: tokenizing{f', {size:,} bytes' if size else ''}")
        with (
            open(part / TOKENS, "ab") as tokens,
            open(part / DOCUMENTS, "ab") as documents_file,
            tqdm(
                total=size, unit="B", unit_scale=True, desc=str(corpus.sources), disable=not sys.stderr.isatty()
            ) as bar,
        ):
            origins = _write(tokens, documents_file, pieces, tokenizer, done, bar)
        table = (part / DOCUMENTS).read_bytes()
        if not table:
            raise nothing_to_learn(corpus.sources.paths)
        rows, documents = _documents(np.memmap(part / TOKENS, mode="r"), table, tokenizer.dtype)
        manifest = {
            "format": FORMAT,
            "text": corpus.survey.fingerprint if corpus.survey else "",
            "tokenizer": tokenizer.fingerprint,
            "dtype": str(np.dtype(tokenizer.dtype)),
            "tokens": len(documents.buffers[0]),
            "documents": len(rows),
            "table": hashlib.sha256(table).hexdigest(),
            "origins": origins,
            "seen": _seen(documents, rows, tokenizer),
        }
        write_json(part / MANIFEST, manifest)
        part.rename(folder)
    except (UserError, OSError):
        shutil.rmtree(part, ignore_errors=True)
        raise
    made = _read(folder)
    assert made is not None
    return made


def _truncate(part: Path, item_size: int) -> int:
    """Cut both files back to the documents that are safe; returns their number."""
    for name in (TOKENS, DOCUMENTS):
        (part / name).touch()
    content = (part / DOCUMENTS).read_bytes()
    table = np.frombuffer(content[: len(content) // (8 * COLUMNS) * 8 * COLUMNS], np.int64).reshape(-1, COLUMNS)
    ends = np.cumsum(table[:, 0]) * item_size
    # a document has a token at least: rows of zeros are what a power cut may leave
    good = (table[:, 0] > 0) & (ends <= (part / TOKENS).stat().st_size)
    done = len(table) if good.all() else int(np.argmin(good))
    os.truncate(part / TOKENS, int(ends[done - 1]) if done else 0)
    os.truncate(part / DOCUMENTS, done * 8 * COLUMNS)
    return done


def _batches(pieces: MarkedPieces) -> Iterator[list[tuple[Piece, bool]]]:
    """Some pieces at a time: enough for all cores, few enough for memory."""
    batch: list[tuple[Piece, bool]] = []
    size = 0
    for piece, marked in pieces:
        batch.append((piece, marked))
        size += len(piece.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _remaining(
    pieces: MarkedPieces, done: int, origins: list[tuple[str, int]], bar: Any
) -> Iterator[tuple[Piece, bool]]:
    """The pieces after `done` documents; `origins` takes down where each file's documents begin."""
    document = 0
    for piece, marked in pieces:
        if not origins or origins[-1][0] != piece.origin:
            origins.append((piece.origin, document))
        if document >= done:
            yield piece, marked
        document += piece.last
        if bar is not None:
            bar.update(len(piece.text.encode()))


def _sync(file: IO[bytes]) -> None:
    if not isinstance(file, io.BytesIO):
        file.flush()
        os.fsync(file.fileno())


def _write(
    tokens: IO[bytes], table: IO[bytes], pieces: MarkedPieces, tokenizer: Tokenizer, done: int = 0, bar: Any = None
) -> list[tuple[str, int]]:
    """Write both arrays, from document number `done` on. Returns where each file's documents begin."""
    origins: list[tuple[str, int]] = []
    count, characters, text_hash = 0, 0, hashlib.blake2b(digest_size=8)
    for batch in _batches(_remaining(pieces, done, origins, bar)):
        rows = []
        for (piece, marked), ids in zip(batch, tokenizer.encode_batch([p.text for p, _ in batch]), strict=True):
            tokens.write(ids.tobytes())
            count, characters = count + len(ids), characters + len(piece.text)
            text_hash.update(piece.text.encode())
            if piece.last:
                rows.append([count, characters, int.from_bytes(text_hash.digest(), "little", signed=True), marked])
                count, characters, text_hash = 0, 0, hashlib.blake2b(digest_size=8)
        _sync(tokens)
        table.write(np.array(rows, dtype=np.int64).tobytes())
        _sync(table)
    return origins
