"""Runs of eight words that two texts share: quotations, and validation text that is among the training text.

Words are runs of letters in lower case, so that « l'un » is two.
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RUN = 8  # words: shorter runs coincide by chance, longer ones are a quotation
MAX_RUNS = 1 << 21  # of the validation text that are remembered; of more, an even sample
GROUP = 1 << 20  # characters that are hashed together
CONTAMINATED = 0.2  # share of shared runs from which there is a warning
_WORD = re.compile(r"[^\W\d_]+")  # letters of any script
_TEXT_END = "\ud800"  # between texts: no text holds half of a surrogate pair
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
# the hash of a word is the sum of a number for each letter times a number for each place
_PLACE = np.random.default_rng(9).integers(0, 1 << 63, 64, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_SHIFT = np.uint64(40)  # the 24 bits that are left tell at once that most runs are not among those remembered

Hashes = NDArray[np.uint64]


def words(text: str) -> list[str]:
    """The words of a text in lower case; everything but letters separates them, so that layout does not count."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def word_runs(text: str, length: int = RUN) -> list[str]:
    """All runs of `length` words of a text, in order, joined by spaces."""
    found = words(text)
    return [" ".join(found[i : i + length]) for i in range(len(found) - length + 1)]


def _mixed(values: Hashes) -> Hashes:
    """Hashes whose every bit depends on all bits (the end of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.cache
def _letters(bits: int) -> tuple[NDArray[np.bool], Hashes]:
    """Of each code point below 2**bits: whether it is a letter, as `words` has it, and an odd number for its hash."""
    count = min(1 << bits, sys.maxunicode + 1)
    is_letter = np.array([c.isalnum() and not c.isdecimal() for c in map(chr, range(count))])
    numbers = np.random.default_rng(8).integers(0, 1 << 63, count, dtype=np.uint64)
    return is_letter, numbers * np.uint64(2) + np.uint64(1)


def run_hashes(texts: Sequence[str]) -> Hashes:
    """A hash of each run of eight words of some texts, in order; computed for all letters at once."""
    plain = unicodedata.normalize("NFC", _TEXT_END.join(texts)).lower()
    points = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    is_letter, numbers = _letters(int(points.max(initial=0xFFFF)).bit_length())
    letter = is_letter[points]
    edges = np.flatnonzero(np.diff(letter, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    if len(starts) < RUN:
        return np.empty(0, dtype=np.uint64)
    first = np.cumsum(ends - starts) - (ends - starts)
    places = np.arange(first[-1] + ends[-1] - starts[-1]) - np.repeat(first, ends - starts)
    word_hashes = np.add.reduceat(numbers[points[letter]] * _PLACE[places % len(_PLACE)], first)
    count = len(word_hashes) - RUN + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for i in range(RUN):
        hashes = _mixed(hashes * _FACTOR + word_hashes[i : i + count] + np.uint64(i))
    text = np.searchsorted(np.flatnonzero(points == ord(_TEXT_END)), starts)  # of each word
    return hashes[text[:count] == text[RUN - 1 :]]


@dataclass(frozen=True)
class Contamination:
    """How many of the validation text's distinct runs of words are in the training text, too."""

    shared: int
    runs: int

    def __str__(self) -> str:
        if not self.runs:
            return f"not measured: the validation text has no run of {RUN} words"
        return (
            f"{self.share:.1%} of the validation text's runs of {RUN} words are in the training text, too "
            f"({self.shared:,} of {self.runs:,})"
        )

    def warn(self) -> None:
        """Say on standard error that the validation text is known to the model, if so."""
        if self.share > CONTAMINATED:
            print("Warning: the model trains on much of the validation text; its loss will flatter", file=sys.stderr)

    @property
    def share(self) -> float:
        """The shared part, from 0 to 1."""
        return self.shared / max(1, self.runs)


class ContaminationCheck:
    """Counts the runs that validation and training text share, in bounded memory.

    Validation text comes first, then `search` is called, then comes training text. Of more validation runs than
    `max_runs` an even sample is taken, the same of both texts; then the counts are the sample's.
    """

    def __init__(self, max_runs: int = MAX_RUNS, repeats_count: bool = True) -> None:
        """`repeats_count`: whether training documents that are the validation text's count, too."""
        self._max_runs, self._repeats_count = max_runs, repeats_count
        self._documents = set[int]()  # hashes of those of the validation text
        self._known = np.empty(0, dtype=np.uint64)  # hashes of the validation text, sorted
        self._mask = np.uint64(0)  # a hash is in the sample if it has no bit of the mask
        self._found: NDArray[np.bool] | None = None  # of `_known`; None as long as validation text comes
        self._texts: list[str] = []  # short texts are hashed together
        self._size = 0

    def add(self, text: str, is_validation: bool, is_document: bool = False) -> None:
        """Take in a piece of text: validation text before `search`, training text after it, else it is ignored.

        `is_document`: it is a whole one.
        """
        if is_document and not self._repeats_count:
            if is_validation:
                self._documents.add(hash(text))
            elif hash(text) in self._documents:
                return
        if is_validation == (self._found is None):
            self._texts.append(text)
            self._size += len(text)
            if self._size >= GROUP:
                self._flush()

    def search(self) -> None:
        """From now on, look for the runs of the validation text."""
        self._flush()
        self._found = np.zeros(len(self._known), dtype=bool)
        self._likely = np.zeros(1 << 24, dtype=bool)
        self._likely[self._known >> _SHIFT] = True

    def result(self) -> Contamination:
        """The counts, after all text."""
        self._flush()
        return Contamination(0 if self._found is None else int(self._found.sum()), len(self._known))

    def _flush(self) -> None:
        new = run_hashes(self._texts)
        self._texts, self._size = [], 0
        if self._found is None:
            self._known = np.union1d(self._known, new[new & self._mask == 0])
            while len(self._known) > self._max_runs:
                self._mask = self._mask << np.uint64(1) | np.uint64(1)
                self._known = self._known[self._known & self._mask == 0]
        elif len(self._known):
            new = new[self._likely[new >> _SHIFT]]
            places = np.minimum(np.searchsorted(self._known, new), len(self._known) - 1)
            self._found[places[self._known[places] == new]] = True
