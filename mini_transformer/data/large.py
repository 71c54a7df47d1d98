"""A text that is too big for memory: streamed, and tokenised into the cache."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mini_transformer.data import cache, shards
from mini_transformer.data.cache import Cache
from mini_transformer.data.corpus import Encoded, HoldOut, tokens_in
from mini_transformer.data.documents import Piece
from mini_transformer.data.records import Unreachable, hub_revision, is_hub, is_remote
from mini_transformer.data.sources import (
    EVERY,
    VALIDATION_SHARE,
    Document,
    Reading,
    is_packed,
    stored_files,
    stream_source,
)
from mini_transformer.data.tokens import TokenDocuments
from mini_transformer.errors import UserError
from mini_transformer.text.tokenizer import Tokenizer


class LargeCorpus:
    """A corpus that is streamed, and tokenised into the cache."""

    def __init__(self, path: Path, reading: Reading, store: Cache, hold_out: HoldOut) -> None:
        self.paths: Sequence[Path] = (path,)
        self.reading, self.cache, self.hold_out = reading, store, hold_out
        self._files = stored_files(path)
        self._stamps = [Cache.stamp(file) for file in self._files]
        self.content = _revision(path, store) if is_remote(path) else store.content(self._files)
        if is_hub(path):
            self.content = cache.digest(self.content, str(path))
        self._keep = self._characters_to_keep() if hold_out == "tenth" else None
        self.digest = cache.digest(self.content, reading.encoding, reading.text_field, hold_out)
        self.held_digest = cache.digest(self.digest, "held out")

    def _characters_to_keep(self) -> int | None:
        """Of fewer than ten documents, how many characters are for training; else None."""
        key = cache.digest("keep", self.content, self.reading.encoding, self.reading.text_field)
        size = self.cache.find("splits", key) or self.cache.keep("splits", key, self._beginning())
        return None if size["documents"] == EVERY else round(size["characters"] * (1 - VALIDATION_SHARE))

    def _beginning(self) -> dict[str, int]:
        """The size of the first ten documents, or of all if they are fewer."""
        documents = characters = 0
        for piece in stream_source(self.paths[0], self.reading):
            documents, characters = documents + piece.last, characters + len(piece.text)
            if documents == EVERY:
                break
        return {"documents": documents, "characters": characters}

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
            seen = tokens_in(train, tokenizer.vocab_size)
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


def _revision(path: Path, store: Cache) -> str:
    """The revision of a dataset on the Hub; the one of last time where the Hub cannot be reached."""
    key = cache.digest(str(path))
    try:
        return str(store.keep("hub", key, hub_revision(path)))
    except Unreachable:
        if (last := store.find("hub", key)) is None:
            raise
    print(f"{path}: the Hub cannot be reached; taking the text of last time", flush=True)
    return str(last)


def _origin(origins: Sequence[tuple[str, int]], document: int) -> str:
    return origins[bisect_right(origins, document, key=lambda origin: origin[1]) - 1][0]
