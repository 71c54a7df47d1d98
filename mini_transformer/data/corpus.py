"""The text of one body of sources: what is learnt, what is held out, and their tokens; in memory or in the cache."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mini_transformer.data import cache, shards
from mini_transformer.data.cache import Cache
from mini_transformer.data.documents import Piece, cut_document
from mini_transformer.data.records import hub_revision, is_hub
from mini_transformer.data.sources import (
    EVERY,
    VALIDATION_SHARE,
    Document,
    Reading,
    is_packed,
    join_pieces,
    nothing_to_learn,
    split_validation,
    stored_files,
    stream_source,
)
from mini_transformer.data.tokens import TokenDocuments
from mini_transformer.errors import UserError
from mini_transformer.text.tokenizer import Tokenizer, Tokens

HoldOut = Literal["none", "tenth", "all"]
TITLE = 100  # tokens that are looked at for the first line of a document


@dataclass(frozen=True)
class Encoded:
    """The tokens of a corpus."""

    train: TokenDocuments
    validation: TokenDocuments
    characters: tuple[int, int]  # of both
    seen: list[int]  # ids that stand in the text to train on


class Corpus(Protocol):
    """One body of text."""

    paths: Sequence[Path]
    digest: str  # of the text to train on
    held_digest: str  # of the text that is held out

    def texts(self) -> Iterator[str]:
        """The text to train on, in pieces."""

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        """The tokens of all of it."""

    def held(self, tokenizer: Tokenizer, tokens: TokenDocuments, most: int | None = None) -> Iterator[Document]:
        """The documents that are held out, or the first `most` tokens of each; `tokens` is `Encoded.validation`."""


def characters_of(lengths: Iterable[int]) -> int:
    """The characters of a text of documents so long: a border is three line feeds."""
    return sum(length + 3 for length in lengths)


class SmallCorpus:
    """A corpus in memory."""

    def __init__(self, paths: Sequence[Path], documents: Sequence[Document], hold_out: HoldOut) -> None:
        self.paths = paths
        texts = [document.text for document in documents]
        if hold_out == "tenth":
            split = split_validation(texts)
            self.train, self.validation = split.train, split.validation
        else:
            self.train, self.validation = (texts, []) if hold_out == "none" else ([], texts)
        # held out is all, the last of each ten, or the end of the text
        origins = [document.origin for document in documents]
        tenths = origins[EVERY - 1 :: EVERY]
        held = len(self.validation)
        self._origins = tenths if held == len(tenths) else origins[len(origins) - held :]
        self.digest, self.held_digest = _digest(self.train), _digest(self.validation)

    def texts(self) -> Iterator[str]:
        """See `Corpus`."""
        return iter(self.train)

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        """See `Corpus`."""
        train, validation = (_encode(tokenizer, documents) for documents in (self.train, self.validation))
        characters = characters_of(map(len, self.train)), characters_of(map(len, self.validation))
        return Encoded(train, validation, characters, _tokens_in(train, tokenizer.vocab_size))

    def held(self, tokenizer: Tokenizer, tokens: TokenDocuments, most: int | None = None) -> Iterator[Document]:
        """See `Corpus`."""
        return map(Document, self.validation, self._origins)


def _digest(documents: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(documents).encode("utf-8")).hexdigest()


def _encode(tokenizer: Tokenizer, documents: Sequence[str]) -> TokenDocuments:
    pieces = [piece for document in documents for piece in cut_document(document, "")]
    tokens = tokenizer.encode_batch([piece.text for piece in pieces])
    lengths, length = [], 0
    for piece, ids in zip(pieces, tokens, strict=True):
        length += len(ids)
        if piece.last:
            lengths.append(length)
            length = 0
    buffer: Tokens = np.concatenate([np.empty(0, dtype=tokenizer.dtype), *tokens])
    return TokenDocuments.of(buffer, np.array(lengths, dtype=np.int64))


class LargeCorpus:
    """A corpus that is streamed, and tokenised into the cache."""

    def __init__(self, path: Path, reading: Reading, store: Cache, hold_out: HoldOut) -> None:
        self.paths: Sequence[Path] = (path,)
        self.reading, self.cache, self.hold_out = reading, store, hold_out
        self._files = stored_files(path)
        self._stamps = [Cache.stamp(file) for file in self._files]
        self.content = cache.digest(store.content(self._files), str(path) if is_hub(path) else "")
        if not self._files:
            self.content = hub_revision(path)
        self._keep = self._characters_to_keep() if hold_out == "tenth" else None
        self.digest = cache.digest(self.content, reading.encoding, reading.text_field, hold_out)
        self.held_digest = cache.digest(self.digest, "held out")

    def _characters_to_keep(self) -> int | None:
        """Of fewer than ten documents, how many characters are for training; else None."""
        lengths = [0]
        for piece in stream_source(self.paths[0], self.reading):
            lengths[-1] += len(piece.text)
            if piece.last:
                lengths.append(0)
            if len(lengths) > EVERY:
                return None
        return round(sum(lengths) * (1 - VALIDATION_SHARE))

    def _pieces(self) -> Iterator[Piece]:
        """All pieces, a border where the text that is held out begins."""
        keep = self._keep
        for piece in stream_source(self.paths[0], self.reading):
            if keep is not None and 0 < keep <= len(piece.text):
                yield Piece(piece.text[:keep], True, piece.origin)
                piece, keep = piece._replace(text=piece.text[keep:]), 0
                if not piece.text.strip() and piece.last:
                    continue
            elif keep:
                keep -= len(piece.text)
            yield piece

    def _held(self, count: int, first_held: int | None) -> NDArray[np.bool]:
        """Which of `count` documents are held out."""
        if self.hold_out != "tenth":
            return np.full(count, self.hold_out == "all")
        if first_held is not None:
            return np.arange(count) >= first_held
        return np.arange(count) % EVERY == EVERY - 1

    def texts(self) -> Iterator[str]:
        """See `Corpus`."""
        if self.hold_out == "all":
            return
        document, keep = 0, self._keep
        for piece in stream_source(self.paths[0], self.reading):
            if keep is not None:
                if keep > 0:
                    yield piece.text[:keep]
                keep -= len(piece.text)
            elif not (self.hold_out == "tenth" and document % EVERY == EVERY - 1):
                yield piece.text
            document += piece.last

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        """See `Corpus`."""
        name = cache.digest(
            shards.FORMAT, self.content, self.reading.encoding, self.reading.text_field, self._keep, tokenizer.digest
        )[:32]
        title, facts = str(self.paths[0]), {"content": self.content, "tokenizer": tokenizer.digest}
        found = shards.read_shards(self.cache.folder / "shards" / name)
        if found is None:
            size = sum(stamp[0] for stamp in self._stamps) if not is_packed(self.paths[0]) else None
            found = shards.make_shards(
                name, self.cache, self._pieces(), tokenizer, facts, title, size, self._check_unchanged
            )
        else:
            print(
                f"{title}: {len(found.documents.buffers[0]):,} tokens from the cache, nothing has changed", flush=True
            )
        count = len(found.documents)
        first_held = None
        if self._keep is not None:
            first_held = int(np.searchsorted(np.cumsum(found.characters), self._keep)) + 1
        held = self._held(count, first_held)
        lengths = found.characters + 3
        train, validation = found.documents.take(~held), found.documents.take(held)
        if first_held is not None:
            seen = _tokens_in(train, tokenizer.vocab_size)
        else:
            seen = sorted({*found.seen[0], *(found.seen[1] if self.hold_out == "none" else ())})
        self._origins = [_origin(found.origins, int(i)) for i in np.flatnonzero(held)]
        characters = int(lengths[~held].sum()), int(lengths[held].sum())
        return Encoded(train, validation, characters, seen)

    def _check_unchanged(self) -> None:
        for file, stamp in zip(self._files, self._stamps, strict=True):
            if Cache.stamp(file) != stamp:
                raise UserError(f"{file}: changed while it was read; start again when it is complete")

    def held(self, tokenizer: Tokenizer, tokens: TokenDocuments, most: int | None = None) -> Iterator[Document]:
        """See `Corpus`."""
        for i in range(len(tokens)):
            yield Document(tokenizer.decode(tokens[i][:most].tolist()), self._origins[i])


def _tokens_in(documents: TokenDocuments, vocab_size: int) -> list[int]:
    """The ids that occur in some documents."""
    seen = np.zeros(vocab_size, dtype=bool)
    for document in documents:
        for start in range(0, len(document), 1 << 22):
            seen[document[start : start + (1 << 22)]] = True
    return np.flatnonzero(seen).tolist()


def _origin(origins: Sequence[tuple[str, int]], document: int) -> str:
    return origins[bisect_right(origins, document, key=lambda origin: origin[1]) - 1][0]


def load_corpora(
    paths: Sequence[Path], reading: Reading, store: Cache, in_memory: int, hold_out: HoldOut
) -> list[Corpus]:
    """The text of some sources: together in memory where they are small, in the cache where they are not.

    Raises `UserError` if there is no text, or it cannot be read.
    """
    small: list[Document] = []
    small_paths, large = [], []
    left = in_memory
    for path in paths:
        documents = _read_if_small(path, reading, left)
        if documents is None:
            large.append(path)
        else:
            left -= sum(len(document.text) for document in documents)
            small += documents
            small_paths.append(path)
    if not small and not large:
        raise nothing_to_learn(paths)
    corpora: list[Corpus] = [SmallCorpus(small_paths, small, hold_out)] if small else []
    return corpora + [LargeCorpus(path, reading, store, hold_out) for path in large]


def _read_if_small(path: Path, reading: Reading, most: int) -> list[Document] | None:
    """All documents of a source, or None if they are more than `most` bytes (characters, where they are packed)."""
    if sum(Cache.stamp(file)[0] for file in stored_files(path)) > most:
        return None
    documents, size = [], 0
    for document in join_pieces(stream_source(path, reading)):
        size += len(document.text)
        documents.append(document)
        if size > most:
            return None
    return documents


def first_line(text: str) -> str:
    """The first line of a document that has any text in it, shortened."""
    return next(islice((line.strip() for line in text.splitlines() if line.strip()), 1), "")[:80]
