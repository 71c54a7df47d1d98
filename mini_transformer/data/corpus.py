"""The text of one body of sources: what is learnt, what is held out, and their tokens. Here: a text in memory."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from mini_transformer.data.documents import cut_document
from mini_transformer.data.sources import EVERY, Document, split_validation
from mini_transformer.data.tokens import TokenDocuments
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
        return Encoded(train, validation, characters, tokens_in(train, tokenizer.vocab_size))

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


def tokens_in(documents: TokenDocuments, vocab_size: int) -> list[int]:
    """The ids that occur in some documents."""
    seen = np.zeros(vocab_size, dtype=bool)
    for document in documents:
        for start in range(0, len(document), 1 << 22):
            seen[document[start : start + (1 << 22)]] = True
    return np.flatnonzero(seen).tolist()


def first_line(text: str) -> str:
    """The first line of a document that has any text in it, shortened."""
    return next(islice((line.strip() for line in text.splitlines() if line.strip()), 1), "")[:80]
