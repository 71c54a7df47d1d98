"""The text of one body of sources: what is learnt, what is held out, and their tokens. Here: a text in memory."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mini_transformer.data.sources import EVERY, Document, split_validation
from mini_transformer.data.tokens import Integers, TokenDocuments
from mini_transformer.text.documents import cut_document
from mini_transformer.text.tokenizer import Tokenizer, Tokens

HoldOut = Literal["none", "tenth", "all"]


@dataclass(frozen=True)
class Part:
    """Some documents as tokens, and what is known of the text of each."""

    tokens: TokenDocuments
    lengths: Integers  # characters
    hashes: Integers

    @property
    def characters(self) -> int:
        """Of all documents; a border is three line feeds."""
        return int(self.lengths.sum()) + 3 * len(self.lengths)

    def take(self, chosen: NDArray[np.bool]) -> "Part":
        """The documents that are marked."""
        return Part(self.tokens.take(chosen), self.lengths[chosen], self.hashes[chosen])


@dataclass(frozen=True)
class Encoded:
    """The tokens of a corpus."""

    train: Part
    validation: Part
    seen: list[int]  # ids that stand in the text to train on


class Corpus(Protocol):
    """One body of text. `digest` and `held_digest` stand for the text to train on and the text that is held out."""

    digest: str
    held_digest: str

    def texts(self) -> Iterator[str]:
        """The text to train on, in pieces."""

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        """The tokens of all of it."""

    def held(self, tokenizer: Tokenizer, validation: Part) -> Iterator[str]:
        """The text that is held out, in pieces. `validation` is that of `Encoded`."""

    def titles(self, tokenizer: Tokenizer, validation: Part) -> list[Document]:
        """The first line of each document that is held out."""


class SmallCorpus:
    """A corpus in memory."""

    def __init__(self, content: str, documents: Sequence[Document], hold_out: HoldOut) -> None:
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
        self.digest, self.held_digest = digests(content, hold_out)

    def texts(self) -> Iterator[str]:
        """See `Corpus`."""
        return iter(self.train)

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        """See `Corpus`."""
        train, validation = (_encode(tokenizer, documents) for documents in (self.train, self.validation))
        return Encoded(train, validation, tokens_in(train.tokens, tokenizer.vocab_size))

    def held(self, tokenizer: Tokenizer, validation: Part) -> Iterator[str]:
        """See `Corpus`."""
        return iter(self.validation)

    def titles(self, tokenizer: Tokenizer, validation: Part) -> list[Document]:
        """See `Corpus`."""
        return [Document(first_line(text), origin) for text, origin in zip(self.validation, self._origins, strict=True)]


def digests(content: str, hold_out: HoldOut) -> tuple[str, str]:
    """`digest` and `held_digest` of a corpus with this content, the same in memory as in the cache."""
    return f"{content} less {hold_out}", f"{hold_out} of {content}"


def _encode(tokenizer: Tokenizer, documents: Sequence[str]) -> Part:
    pieces = [piece for document in documents for piece in cut_document(document, "")]
    tokens = tokenizer.encode_batch([piece.text for piece in pieces])
    lengths, length = [], 0
    for piece, ids in zip(pieces, tokens, strict=True):
        length += len(ids)
        if piece.last:
            lengths.append(length)
            length = 0
    buffer: Tokens = np.concatenate([np.empty(0, dtype=tokenizer.dtype), *tokens])
    return Part(
        TokenDocuments.of(buffer, np.array(lengths, dtype=np.int64)),
        np.array([len(document) for document in documents], dtype=np.int64),
        np.array([hash_number(text_hash(document.encode())) for document in documents], dtype=np.int64),
    )


def text_hash(content: bytes = b"") -> hashlib.blake2b:
    """The state of the hash by which a document is known; `update` takes more of its text."""
    return hashlib.blake2b(content, digest_size=8)


def hash_number(state: hashlib.blake2b) -> int:
    """The hash as a signed number of 64 bits."""
    return int.from_bytes(state.digest(), "little", signed=True)


def tokens_in(documents: TokenDocuments, vocab_size: int) -> list[int]:
    """The ids that occur in some documents."""
    seen = np.zeros(vocab_size, dtype=bool)
    for document in documents:
        for start in range(0, len(document), 1 << 22):
            part = document[start : start + (1 << 22)]
            seen[part] = True
            documents.release(len(part))
    return np.flatnonzero(seen).tolist()


def first_line(text: str) -> str:
    """The first line of a document that has any text in it, shortened."""
    return next(islice((line.strip() for line in text.splitlines() if line.strip()), 1), "")[:80]
