"""Scansion of French verse: the metre of each line, and the line it rhymes with."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from mini_transformer.verse.rhyme import rhyme, rhymes
from mini_transformer.verse.syllables import scan, split_words, syllable_counts

# The metres of classical practice, most frequent first; 9, 11 and more than 12 syllables are not among them.
CLASSICAL_METRES = (12, 8, 10, 7, 6, 5, 4, 3, 2)
MAX_DISTANCE = 4  # how many verses away a rhyme, or a verse of the same metre, may be

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Verse:
    """One verse of a text.

    `number` is its line number, from 1; `counts` its possible syllable counts; `metre` is None if it has no classical
    metre; `alone` says that no verse within four has the same metre, which is allowed but may be a mistake; `partner`
    is the line number of the nearest verse within four that it rhymes with, or None; `rhyme` its sounds.
    """

    number: int
    text: str
    counts: tuple[int, ...]
    metre: int | None
    alone: bool
    partner: int | None
    rhyme: str


@dataclass(frozen=True, slots=True)
class Poem:
    """A title ("" if there is none) and the verses below it."""

    title: str
    verses: tuple[Verse, ...]


@dataclass(frozen=True, slots=True)
class VerseReport:
    """The poems of a text, and a summary of its verses as shares (0.0 if there are none).

    `classical` is the share with a classical metre; `settled` the share with a classical metre that a verse within
    four also has, which is rare by chance; `rhymed` the share that rhymes with a verse within four. `metres` counts
    the verses of each metre, most frequent first.
    """

    poems: tuple[Poem, ...]
    classical: float
    settled: float
    rhymed: float
    distinct_rhymes: int
    metres: dict[int, int]

    @property
    def verses(self) -> tuple[Verse, ...]:
        """All verses of the text, in order."""
        return tuple(verse for poem in self.poems for verse in poem.verses)


def possible_metres(line: str, allow_5_5: bool = False) -> frozenset[int]:
    """The classical metres that `line` may have, whatever is around it.

    An alexandrine needs a caesura after the sixth syllable; a decasyllable needs one after the fourth, or, if
    `allow_5_5`, after the fifth.
    """
    return frozenset(
        count
        for count, caesurae in scan(line)
        if count in CLASSICAL_METRES
        and (count != 12 or 6 in caesurae)
        and (count != 10 or 4 in caesurae or (allow_5_5 and 5 in caesurae))
    )


def metre(line: str, expected: int | None = None) -> int | None:
    """The classical metre of `line`, or None.

    `expected` decides between several possible metres. A decasyllable in 5 + 5 is accepted only if 10 is expected:
    in La Fontaine and in classical drama it is 4 + 6.
    """
    possible = possible_metres(line, allow_5_5=expected == 10)
    if expected in possible:
        return expected
    return next((count for count in CLASSICAL_METRES if count in possible), None)


def is_title(line: str) -> bool:
    """Whether a line is in capitals: words or a Roman numeral."""
    return line.isupper() and (len(line.strip()) > 1 or line.strip() in "IVX")


def analyse(text: str) -> VerseReport:
    """Scan every verse of `text`.

    A title is a line in capitals after a blank line. A title, or two blank lines, begin a new poem.
    """
    poems: list[tuple[str, list[tuple[int, str]]]] = []
    blanks = 2
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            blanks += 1
            continue
        title = blanks > 0 and is_title(line)
        if title or blanks > 1:
            poems.append((line.strip() if title else "", []))
        if not title and split_words(line):
            poems[-1][1].append((number, line))
        blanks = 0
    return _report(tuple(Poem(title, _scan_poem(lines)) for title, lines in poems if title or lines))


def _scan_poem(lines: list[tuple[int, str]]) -> tuple[Verse, ...]:
    possible = [possible_metres(line) for _, line in lines]
    metres = [_choose_metre(line, _neighbours(possible, index)) for index, (_, line) in enumerate(lines)]
    return tuple(
        Verse(
            number=number,
            text=line,
            counts=tuple(sorted(syllable_counts(line))),
            metre=None if _is_lone_odd_metre(metres, index) else metres[index],
            alone=metres[index] not in _neighbours(metres, index),
            partner=_find_partner(lines, index),
            rhyme="/".join(sorted(found.sounds)) if (found := rhyme(line)) else "",
        )
        for index, (number, line) in enumerate(lines)
    )


def _neighbours(items: Sequence[_T], index: int) -> Sequence[_T]:
    """The items within four of `index`, without itself."""
    return [*items[max(0, index - MAX_DISTANCE) : index], *items[index + 1 : index + MAX_DISTANCE + 1]]


def _choose_metre(line: str, neighbours: Sequence[frozenset[int]]) -> int | None:
    """The metre of a line: the most frequent around it if several are possible."""
    certain = Counter(next(iter(possible)) for possible in neighbours if len(possible) == 1)
    possible = possible_metres(line, allow_5_5=certain[10] > 0)
    return max(possible, key=lambda count: (certain[count], count), default=None)


def _is_lone_odd_metre(metres: Sequence[int | None], index: int) -> bool:
    """Whether a verse of 7 or 5 has only even metres around it: more likely a mistake than a choice."""
    return metres[index] in (7, 5) and not {7, 5, 3} & set(_neighbours(metres, index))


def _find_partner(lines: list[tuple[int, str]], index: int) -> int | None:
    for distance in range(1, MAX_DISTANCE + 1):
        for other in (index - distance, index + distance):
            if 0 <= other < len(lines) and rhymes(lines[index][1], lines[other][1]):
                return lines[other][0]
    return None


def _report(poems: tuple[Poem, ...]) -> VerseReport:
    verses = [verse for poem in poems for verse in poem.verses]
    total = len(verses) or 1
    metres = Counter(verse.metre for verse in verses if verse.metre is not None)
    classical = metres.total() / total
    settled = sum(verse.metre is not None and not verse.alone for verse in verses) / total
    rhymed = sum(verse.partner is not None for verse in verses) / total
    distinct_rhymes = len({verse.rhyme for verse in verses})
    return VerseReport(poems, classical, settled, rhymed, distinct_rhymes, dict(metres.most_common()))
