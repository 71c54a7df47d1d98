"""A text that is too big for memory: streamed, and tokenised into the cache."""

import codecs
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mini_transformer.data import shards
from mini_transformer.data.cache import digest
from mini_transformer.data.corpus import Encoded, HoldOut, Part, digests, first_line, tokens_in
from mini_transformer.data.sources import EVERY, VALIDATION_SHARE, Document
from mini_transformer.data.stored import Sources
from mini_transformer.text.documents import Piece
from mini_transformer.text.tokenizer import Tokenizer

TITLE = 100  # tokens that are looked at for the first line of a document
DECODE = 1 << 18  # tokens that are decoded at once


class LargeCorpus:
    """A corpus that is streamed, and tokenised into the cache."""

    def __init__(self, sources: Sources, hold_out: HoldOut) -> None:
        self.sources, self.hold_out = sources, hold_out
        self.cache = sources.store
        self.content = sources.content(remember=True)
        self._keep = self._characters_to_keep() if hold_out == "tenth" else None
        self.digest, self.held_digest = digests(self.content, hold_out)

    def _characters_to_keep(self) -> int | None:
        """Of fewer than ten documents, how many characters are for training; else None."""
        key, kinds = digest("keep", self.content), {"documents": int, "characters": int}
        size = self.cache.find("splits", key, kinds) or self.cache.keep("splits", key, self._beginning())
        return None if size["documents"] == EVERY else round(size["characters"] * (1 - VALIDATION_SHARE))

    def _beginning(self) -> dict[str, int]:
        """The size of the first ten documents, or of all if they are fewer."""
        documents = characters = 0
        for piece in self.sources.stream():
            documents, characters = documents + piece.last, characters + len(piece.text)
            if documents == EVERY:
                break
        return {"documents": documents, "characters": characters}

    def _pieces(self) -> Iterator[Piece]:
        """All pieces, a border where the text that is held out begins."""
        keep = self._keep
        for piece in self.sources.stream():
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
        for piece in self.sources.stream():
            if keep is not None:
                if keep > 0:
                    yield piece.text[:keep]
                keep -= len(piece.text)
            elif not (self.hold_out == "tenth" and document % EVERY == EVERY - 1):
                yield piece.text
            document += piece.last

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        """See `Corpus`."""
        key = (shards.FORMAT, self.content, self.sources.reading.max_unreadable, self._keep, tokenizer.fingerprint)
        name = digest(*key)[:32]
        found = shards.read_shards(self.cache.folder / "shards" / name)
        if found is None:
            facts = {"content": self.content, "tokenizer": tokenizer.fingerprint}
            found = shards.make_shards(name, self.sources, self._pieces(), tokenizer, facts)
        else:
            tokens = len(found.part.tokens.buffers[0])
            print(f"{self.sources}: {tokens:,} tokens from the cache, nothing has changed", flush=True)
        first_held = None
        if self._keep is not None:
            first_held = int(np.searchsorted(np.cumsum(found.part.lengths), self._keep)) + 1
        held = self._held(len(found.part.lengths), first_held)
        train, validation = found.part.take(~held), found.part.take(held)
        if first_held is not None:
            seen = tokens_in(train.tokens, tokenizer.vocab_size)
        else:
            seen = sorted({*found.seen[0], *(found.seen[1] if self.hold_out == "none" else ())})
        self._origins = [_origin(found.origins, int(i)) for i in np.flatnonzero(held)]
        return Encoded(train, validation, seen)

    def held(self, tokenizer: Tokenizer, validation: Part) -> Iterator[str]:
        """See `Corpus`."""
        for document in validation.tokens:
            decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
            for start in range(0, len(document), DECODE):
                yield decoder.decode(tokenizer.decode_bytes(document[start : start + DECODE].tolist()))
                validation.tokens.release(DECODE)

    def titles(self, tokenizer: Tokenizer, validation: Part) -> list[Document]:
        """See `Corpus`."""
        texts = (tokenizer.decode(document[:TITLE].tolist()) for document in validation.tokens)
        return [Document(first_line(text), origin) for text, origin in zip(texts, self._origins, strict=True)]


def _origin(origins: Sequence[tuple[str, int]], document: int) -> str:
    return origins[bisect_right(origins, document, key=lambda origin: origin[1]) - 1][0]
