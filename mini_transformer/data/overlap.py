"""Text that stands in two places: runs of eight words that two texts share.

Words are runs of letters in lower case, so that « l'un » is two.
"""

import functools
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from mini_transformer.data.words import RUN, words

MOST = 1 << 21  # runs that are remembered of the validation text; of more, an even sample
LOOK = 1 << 30  # characters of each training text that are looked through
MUCH = 0.2  # share of shared runs from which the validation text is called known
GROUP = 1 << 18  # characters that are hashed together
BORDER = "\ud800"  # between texts: no text holds half of a surrogate pair
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
# the hash of a word is the sum of a number for each letter times a number for each place
_PLACE = np.random.default_rng(9).integers(0, 1 << 63, 64, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_SHIFT = np.uint64(40)  # the 24 bits that are left say at once that most runs are not among those remembered

Hashes = NDArray[np.uint64]


def runs(text: str) -> Iterator[tuple[str, ...]]:
    """All runs of eight words of a text, in order."""
    found = words(text)
    return zip(*(found[i:] for i in range(RUN)), strict=False)


def _mixed(values: Hashes) -> Hashes:
    """Hashes whose every bit depends on all bits (the end of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.cache
def _is_letter() -> NDArray[np.bool]:
    """Of each code point: whether words are made of it; the same letters as those of `words`."""
    return np.array([c.isalnum() and not c.isdecimal() for c in map(chr, range(0x110000))])


@functools.cache
def _letter_hash() -> Hashes:
    """Of each code point: an odd number."""
    return np.random.default_rng(8).integers(0, 1 << 63, 0x110000, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def run_hashes(texts: Sequence[str]) -> Hashes:
    """A hash of each run of eight words of some texts, in order; computed for all letters at once."""
    plain = unicodedata.normalize("NFC", BORDER.join(texts)).lower()
    points = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    letter = _is_letter()[points]
    edges = np.flatnonzero(np.diff(letter, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    if len(starts) < RUN:
        return np.empty(0, dtype=np.uint64)
    first = np.cumsum(ends - starts) - (ends - starts)
    places = np.arange(first[-1] + ends[-1] - starts[-1]) - np.repeat(first, ends - starts)
    word_hashes = np.add.reduceat(_letter_hash()[points[letter]] * _PLACE[places % len(_PLACE)], first)
    count = len(word_hashes) - RUN + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for i in range(RUN):
        hashes = _mixed(hashes * _FACTOR + word_hashes[i : i + count] + np.uint64(i))
    text = np.searchsorted(np.flatnonzero(points == ord(BORDER)), starts)  # of each word
    return hashes[text[:count] == text[RUN - 1 :]]


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Many short texts at a time, or few long ones."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= GROUP:
            yield group
            group, size = [], 0
    yield group


@dataclass(frozen=True)
class Overlap:
    """How much of one text's runs stand in another, too."""

    shared: int
    runs: int

    def __str__(self) -> str:
        if not self.runs:
            return f"not measured: the validation text has no run of {RUN} words"
        return (
            f"{self.share:.1%} of the validation text's runs of {RUN} words stand in the training text, too "
            f"({self.shared:,} of {self.runs:,})"
        )

    def warn(self) -> None:
        """Say on standard error that the validation text is not unknown, if so."""
        if self.share > MUCH:
            print("Warning: the validation text is not unknown to the model; its loss will flatter", file=sys.stderr)

    @property
    def share(self) -> float:
        """The shared part, from 0 to 1."""
        return self.shared / max(1, self.runs)


def beginning(texts: Iterable[str], most: int = LOOK) -> Iterator[str]:
    """Texts up to so many characters in all."""
    for text in texts:
        if most <= 0:
            return
        most -= len(text)
        yield text


def overlap(validation: Iterable[str], training: Iterable[str], most: int = MOST) -> Overlap:
    """How many of the distinct runs of the validation text stand in the training text, in bounded memory.

    Of more runs than `most` a sample is taken, the same of both texts, and the counts are those of the sample.
    """
    known, mask = np.empty(0, dtype=np.uint64), np.uint64(0)  # a hash is in the sample if it has no bit of the mask
    fresh: list[Hashes] = []
    count = 0  # of those
    for group in chain(_groups(validation), [None]):
        if group is not None:
            new = run_hashes(group)
            fresh.append(new[new & mask == 0])
            count += len(fresh[-1])
        if group is None or count > most:
            known, fresh, count = np.unique(np.concatenate([known, *fresh])), [], 0
            while len(known) > most:
                mask = mask << np.uint64(1) | np.uint64(1)
                known = known[known & mask == 0]
    found = np.zeros(len(known), dtype=bool)
    likely = np.zeros(1 << 24, dtype=bool)
    likely[known >> _SHIFT] = True
    for group in _groups(training if len(known) else ()):
        new = run_hashes(group)
        new = new[likely[new >> _SHIFT]]
        places = np.minimum(np.searchsorted(known, new), len(known) - 1)
        found[places[known[places] == new]] = True
    return Overlap(int(found.sum()), len(known))
