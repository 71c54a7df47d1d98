"""A corpus: the text of some sources in pieces, each marked as training or validation text, read as seldom as can be.

The first read of a corpus also surveys it: its fingerprint (a hash of its text, wherever and in whatever format it is
kept) and its size. The survey of a big corpus is kept in the cache, under the state of its files.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import chain

from mini_transformer.data.cache import DataCache, digest
from mini_transformer.data.sources import Sources
from mini_transformer.text.documents import Piece

EVERY = 10  # of ten documents or more every tenth is marked, where no other fraction is asked for
LOOK_AHEAD = 1 << 23  # characters that are kept in memory until it is known how many documents there are
SETTLED = 2.0  # seconds after which another change to a file gets another time stamp


@dataclass(frozen=True)
class Survey:
    """What the first read of a corpus finds out."""

    fingerprint: str
    documents: int
    characters: int


def mark_split(pieces: Iterable[Piece], cut: int | None, every: int = EVERY) -> Iterator[tuple[Piece, bool]]:
    """Mark the pieces of validation text: the last of so many documents, or else all text after `cut` characters.

    A document that the cut goes through becomes two.
    """
    document = position = 0
    for piece in pieces:
        start, position = position, position + len(piece.text)
        if cut is None:
            yield piece, document % every == every - 1
        elif start < cut <= position:
            yield piece._replace(text=piece.text[: cut - start], last=True), False
            if (rest := piece.text[cut - start :]).strip() or not piece.last:
                yield piece._replace(text=rest), True
        else:
            yield piece, start >= cut
        document += piece.last


class Corpus:
    """The documents of some sources that are split, shuffled and counted together."""

    def __init__(self, sources: Sources, val_fraction: float, cache: DataCache, in_memory: int) -> None:
        """`val_fraction`: how much of it is validation text, from 0 (none) to 1 (all).

        `in_memory`: up to this many bytes of text, its tokens are made at each start and kept in memory.
        """
        self.sources, self.val_fraction, self.cache, self._in_memory = sources, val_fraction, cache, in_memory
        self.every = round(1 / val_fraction) if 0 < val_fraction < 1 else EVERY
        self.survey: Survey | None = None
        self.find_survey()

    def find_survey(self) -> Survey | None:
        """The survey, if the corpus was read before and has not changed since."""
        if self.survey is None:
            names = [field.name for field in fields(Survey)]
            found = self.cache.find("surveys", self.sources.key(self.cache), names)
            self.survey = Survey(**found) if found else None
        return self.survey

    @property
    def is_cached(self) -> bool:
        """Whether its tokens go to the cache: those of much text do, and what had to be fetched from the Hub."""
        characters = self.survey.characters if self.survey else 0
        return self.sources.remote or max(self.sources.size, characters) > self._in_memory

    @property
    def cut(self) -> int | None:
        """Of a corpus of few documents that is to be split: the characters before its validation text."""
        if self.survey is None or not 0 < self.val_fraction < 1 or self.survey.documents >= self.every:
            return None
        return round(self.survey.characters * (1 - self.val_fraction))

    def fingerprint(self, validation: bool = False) -> str:
        """Stands for the training or the validation text of the corpus, after its first read."""
        assert self.survey is not None
        return digest(self.survey.fingerprint, self.val_fraction, validation)

    def is_validation(self, marked: bool) -> bool:
        """Whether a piece is validation text, given the mark of `mark_split`."""
        return self.val_fraction == 1 or (self.val_fraction > 0 and marked)

    def read(self) -> Iterator[tuple[Piece, bool]]:
        """Read the text once: pieces, marked by `mark_split`. Raises `UserError` if it cannot be read."""
        pieces = self._surveyed()
        if self.survey is None and 0 < self.val_fraction < 1:
            # how the text is split is known after so many documents, or at its end
            head, documents, size = list[Piece](), 0, 0
            for piece in pieces:
                documents, size = documents + piece.last, size + len(piece.text)
                if size <= LOOK_AHEAD:
                    head.append(piece)
                if documents == self.every:
                    break
            pieces = chain(head, pieces) if size <= LOOK_AHEAD else self._surveyed()
        yield from mark_split(pieces, self.cut, self.every)

    def _surveyed(self) -> Iterator[Piece]:
        """The pieces; after the last one there is a survey."""
        if self.survey is not None:
            yield from self.sources.stream()
            return
        text_hash, documents, characters = hashlib.sha256(), 0, 0
        for piece in self.sources.stream():
            text_hash.update(piece.text.encode() + b"\xff" * piece.last)  # a byte that UTF-8 does not have
            documents, characters = documents + piece.last, characters + len(piece.text)
            yield piece
        self.survey = Survey(text_hash.hexdigest(), documents, characters)
        # a file that has just changed may change once more without another time stamp
        newest = max((mtime for _, mtime, _ in self.sources.stats.values()), default=0) / 1e9
        if self.is_cached and time.time() - newest > SETTLED:
            self.cache.keep("surveys", self.sources.key(self.cache), asdict(self.survey))
