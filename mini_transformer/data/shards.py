"""Tokens on disk: a text is tokenised once, into a folder that is mapped into memory ever after.

A finished folder holds `tokens.bin` (uint16 or uint32), `documents.bin` (three int64 a document: tokens, characters,
hash of the text) and `manifest.json`. While it is made it is called `NAME.part` and holds `progress.json`, which says
how much of the two files is good: a killed process goes on from there. It gets its name in one step, when all of it is
on disk.
"""

import hashlib
import json
import mmap
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mini_transformer.data.cache import locked
from mini_transformer.data.corpus import Part, hash_number, text_hash
from mini_transformer.data.sources import EVERY, nothing_to_learn
from mini_transformer.data.stored import Sources
from mini_transformer.data.tokens import TokenDocuments
from mini_transformer.errors import UserError
from mini_transformer.files import write_json
from mini_transformer.text.documents import Piece
from mini_transformer.text.tokenizer import Tokenizer, Tokens

FORMAT = 2
TOKENS, DOCUMENTS, MANIFEST, PROGRESS = "tokens.bin", "documents.bin", "manifest.json", "progress.json"
BATCH = 1 << 21  # characters that are encoded together, on all cores, and then made safe


@dataclass
class Progress:
    """How far the making is; what a resumed one needs."""

    pieces: int = 0
    documents: int = 0
    tokens: int = 0
    characters: int = 0
    open_tokens: int = 0  # of the document that is not complete
    open_characters: int = 0
    origins: list[tuple[str, int]] = field(default_factory=list)  # file, its first document
    # ids that occur in documents to train on, and in those that a split by tenths would hold out
    seen: list[list[int]] = field(default_factory=lambda: [[], []])


@dataclass(frozen=True)
class Shards:
    """Tokenised documents in a folder."""

    part: Part
    origins: list[tuple[str, int]]
    seen: list[list[int]]


def read_shards(folder: Path) -> Shards | None:
    """The shards of a folder; None if there are none that are whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        dtype = np.dtype(manifest["dtype"])
        with open(folder / TOKENS, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tokens: Tokens = np.frombuffer(mapped, dtype=dtype)
        table = (folder / DOCUMENTS).read_bytes()
        if (manifest["format"], manifest["tokens"]) != (FORMAT, len(tokens)) or manifest["table"] != _hash(table):
            return None
        lengths, characters, hashes = np.frombuffer(table, dtype=np.int64).reshape(-1, 3).T
        part = Part(TokenDocuments.of(tokens, lengths, [mapped]), characters, hashes)
        return Shards(part, manifest["origins"], manifest["seen"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_shards(
    name: str, sources: Sources, pieces: Iterator[Piece], tokenizer: Tokenizer, facts: dict[str, Any]
) -> Shards:
    """Tokenise the pieces of sources into the cache's folder `name`, or go on with what a killed process began there.

    `facts` go into the manifest. Raises `UserError` if the pieces cannot be read, the sources change meanwhile or the
    disk is full; nothing is left of them then.
    """
    cache = sources.store
    place = cache.folder / "shards"
    folder, part = place / name, place / f"{name}.part"
    with cache.writing():
        place.mkdir(parents=True, exist_ok=True)
    with locked(place / f"{name}.lock", f"tokenises {sources}"):
        if (made := read_shards(folder)) is not None:
            return made
        try:
            with cache.writing():
                shutil.rmtree(folder, ignore_errors=True)
                part.mkdir(exist_ok=True)
                progress = _write(part, pieces, tokenizer, str(sources), sources.text_size)
                sources.check_unchanged()
                if not progress.documents:
                    raise nothing_to_learn(sources.paths)
                table = _hash((part / DOCUMENTS).read_bytes())
                manifest = {"format": FORMAT, **facts, **_summary(progress, tokenizer), "table": table}
                write_json(part / MANIFEST, manifest)
                part.rename(folder)
                (folder / PROGRESS).unlink()
        except UserError:
            shutil.rmtree(part, ignore_errors=True)
            raise
    made = read_shards(folder)
    assert made is not None
    return made


def _summary(progress: Progress, tokenizer: Tokenizer) -> dict[str, Any]:
    names = ("documents", "tokens", "characters", "origins", "seen")
    return {"dtype": str(np.dtype(tokenizer.dtype))} | {name: getattr(progress, name) for name in names}


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Some pieces at a time: enough for all cores, few enough for memory."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write(part: Path, pieces: Iterator[Piece], tokenizer: Tokenizer, title: str, size: int | None) -> Progress:
    """Write both files, from where they are good."""
    progress = _resume(part, tokenizer)
    seen = np.zeros((2, tokenizer.vocab_size), dtype=bool)
    for mask, known in zip(seen, progress.seen, strict=True):
        mask[known] = True
    with ExitStack() as stack:
        tokens_file, documents_file = (stack.enter_context(open(part / n, "ab")) for n in (TOKENS, DOCUMENTS))
        terminal = sys.stderr.isatty()
        bar = stack.enter_context(tqdm(total=size, unit="B", unit_scale=True, desc=title, disable=not terminal))
        if not terminal:
            print(f"{title}: tokenising{f', {size:,} bytes' if size else ''}", flush=True)
        text = text_hash()  # of the document that is not complete
        for piece in islice(pieces, progress.pieces):  # done before; the tokens of these are there
            content = piece.text.encode()
            bar.update(len(content))
            if piece.last:
                text = text_hash()
            else:
                text.update(content)
        for batch in _batches(pieces):
            for piece, ids in zip(batch, tokenizer.encode_batch([piece.text for piece in batch]), strict=True):
                if not progress.origins or progress.origins[-1][0] != piece.origin:
                    progress.origins.append((piece.origin, progress.documents))
                seen[int(progress.documents % EVERY == EVERY - 1)][ids] = True
                content = piece.text.encode()
                text.update(content)
                tokens_file.write(ids.tobytes())
                progress.pieces += 1
                progress.tokens += len(ids)
                progress.characters += len(piece.text)
                progress.open_tokens += len(ids)
                progress.open_characters += len(piece.text)
                if piece.last:
                    record = [progress.open_tokens, progress.open_characters, hash_number(text)]
                    documents_file.write(np.array(record, dtype=np.int64).tobytes())
                    text = text_hash()
                    progress.documents += 1
                    progress.open_tokens = progress.open_characters = 0
                bar.update(len(content))
            _commit(part, progress, seen, tokens_file, documents_file)
    return progress


def _commit(part: Path, progress: Progress, seen: NDArray[np.bool], *files: IO[bytes]) -> None:
    """Make sure that all so far is on disk, then say so."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())
    progress.seen = [np.flatnonzero(mask).tolist() for mask in seen]
    write_json(part / PROGRESS, asdict(progress))


def _resume(part: Path, tokenizer: Tokenizer) -> Progress:
    """What a killed process had made safe, with the files cut back to it; or a beginning."""
    try:
        progress = Progress(**json.loads((part / PROGRESS).read_text(encoding="utf-8")))
        progress.origins = [(name, first) for name, first in progress.origins]
        for name, size in (
            (TOKENS, progress.tokens * np.dtype(tokenizer.dtype).itemsize),
            (DOCUMENTS, progress.documents * 24),
        ):
            if (part / name).stat().st_size < size:
                raise ValueError(name)
            os.truncate(part / name, size)
    except (OSError, ValueError, TypeError):
        for name in (TOKENS, DOCUMENTS, PROGRESS):
            (part / name).unlink(missing_ok=True)
        return Progress()
    print(f"Going on with the tokens of an interrupted run: {progress.characters:,} characters are done", flush=True)
    return progress
