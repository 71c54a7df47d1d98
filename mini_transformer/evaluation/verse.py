"""Metre and rhyme of French verse: is each line a verse, and does it rhyme?

From the shell: `python -m mini_transformer.evaluation.verse FILE` prints each verse with its syllables, its
metre and the verse it rhymes with, and marks what is wrong.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mini_transformer.evaluation.rhyme import rhyme, rhymes
from mini_transformer.evaluation.syllables import scan, syllable_counts, tokens

__all__ = ["Poem", "Verse", "VerseReport", "analyse", "metre", "rhyme", "rhymes", "syllable_counts"]

# The metres of classical practice, the most frequent first; 9, 11 and more than 12 are not among them.
CLASSICAL = (12, 8, 10, 7, 6, 5, 4, 3, 2)
# How far a rhyme, or a verse of the same kind, may stand.
REACH = 4

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Verse:
    """One verse of a text: its line number (from 1), its syllables, its metre and its rhyme mate.

    `metre` is None where no classical metre fits; `alone` says that no verse within four has the same metre,
    which is allowed but worth a look; `mate` is the number of the nearest line within four verses that rhymes
    with this one, or None; `rhyme` shows the sounds of the rhyme.
    """

    number: int
    text: str
    counts: tuple[int, ...]
    metre: int | None
    alone: bool
    mate: int | None
    rhyme: str


@dataclass(frozen=True, slots=True)
class Poem:
    """The verses of one piece under their title ("" where there is none)."""

    title: str
    verses: tuple[Verse, ...]


@dataclass(frozen=True, slots=True)
class VerseReport:
    """The poems of a text and the shares of its verses that sum them up (0.0 where there is no verse).

    `classical` have a classical metre; `settled` have one that a verse within four lines shares, which chance
    rarely gives; `rhymed` rhyme with a verse within four lines. `metres` counts the verses of each metre.
    """

    poems: tuple[Poem, ...]
    classical: float
    settled: float
    rhymed: float
    distinct_rhymes: int
    metres: dict[int, int]

    @property
    def verses(self) -> tuple[Verse, ...]:
        """All verses of the text in order."""
        return tuple(verse for poem in self.poems for verse in poem.verses)


def metres(line: str, middle: bool = False) -> frozenset[int]:
    """The classical metres that `line` may have, whatever stands around it.

    Twelve syllables need a word that ends, stressed, on the sixth; ten need one on the fourth, or, where
    `middle` is true, on the fifth.
    """
    return frozenset(
        way.count
        for way in scan(line)
        if way.count in CLASSICAL
        and (way.count != 12 or 6 in way.breaks)
        and (way.count != 10 or 4 in way.breaks or (middle and 5 in way.breaks))
    )


def metre(line: str, expected: int | None = None) -> int | None:
    """The classical metre of `line`, or None.

    `expected` decides where two are possible; ten syllables cut in 5 + 5 are a metre only where ten are
    expected, for La Fontaine and the theatre cut them in 4 + 6.
    """
    possible = metres(line, middle=expected == 10)
    if expected in possible:
        return expected
    return next((number for number in CLASSICAL if number in possible), None)


def is_title(line: str) -> bool:
    """Whether a line is a title: words, or a Roman numeral, all in capitals."""
    return line.isupper() and (len(line.strip()) > 1 or line.strip() in "IVX")


def analyse(text: str) -> VerseReport:
    """Measure every verse of `text`.

    Titles are lines in capitals that stand alone; two blank lines, or a title, part one poem from the next.
    """
    poems: list[Poem] = []
    title, lines = "", list[tuple[int, str]]()
    blanks = 2
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            blanks += 1
            continue
        heading = is_title(line) and blanks > 0
        if heading or blanks > 1:
            if lines or title:
                poems.append(Poem(title, _verses(lines)))
            title, lines = "", []
        if heading:
            title = line.strip()
        elif tokens(line):
            lines.append((number, line))
        blanks = 0
    if lines or title:
        poems.append(Poem(title, _verses(lines)))
    return _report(poems)


def _verses(lines: list[tuple[int, str]]) -> tuple[Verse, ...]:
    alone = [metres(line) for _, line in lines]
    chosen = [_choose(lines[index][1], _around(alone, index)) for index in range(len(lines))]
    return tuple(
        Verse(
            number=number,
            text=line,
            counts=tuple(sorted(syllable_counts(line))),
            metre=None if _astray(chosen, index) else chosen[index],
            alone=chosen[index] not in _around(chosen, index),
            mate=_mate(lines, index),
            rhyme=_name(line),
        )
        for index, (number, line) in enumerate(lines)
    )


def _around(items: Sequence[_T], index: int) -> Sequence[_T]:
    """The items within reach of `index`, itself left out."""
    return [*items[max(0, index - REACH) : index], *items[index + 1 : index + REACH + 1]]


def _choose(line: str, near: Sequence[frozenset[int]]) -> int | None:
    """The metre of a line, the commonest around it where several are possible."""
    sure = Counter(next(iter(found)) for found in near if len(found) == 1)
    possible = metres(line, middle=sure[10] > 0)
    return metre(line, max(possible, key=lambda number: (sure[number], number), default=None))


def _astray(chosen: Sequence[int | None], index: int) -> bool:
    """Whether a verse of seven or five stands among verses of even length only: a slip, not a choice."""
    return chosen[index] in (7, 5) and not {7, 5, 3} & set(_around(chosen, index))


def _mate(lines: list[tuple[int, str]], index: int) -> int | None:
    for distance in range(1, REACH + 1):
        for other in (index - distance, index + distance):
            if 0 <= other < len(lines) and rhymes(lines[index][1], lines[other][1]):
                return lines[other][0]
    return None


def _name(line: str) -> str:
    found = rhyme(line)
    return "/".join(sorted(found.sounds)) if found else ""


def _report(poems: list[Poem]) -> VerseReport:
    verses = [verse for poem in poems for verse in poem.verses]
    total = len(verses) or 1
    return VerseReport(
        poems=tuple(poems),
        classical=sum(verse.metre is not None for verse in verses) / total,
        settled=sum(verse.metre is not None and not verse.alone for verse in verses) / total,
        rhymed=sum(verse.mate is not None for verse in verses) / total,
        distinct_rhymes=len({verse.rhyme for verse in verses}),
        metres=dict(Counter(verse.metre for verse in verses if verse.metre is not None).most_common()),
    )


def show(verse: Verse) -> str:
    """One line for a reader: number, syllables, metre, mate, rhyme, text, and what is wrong."""
    marks = []
    if verse.metre is None:
        marks.append("METRE")
    elif verse.alone:
        marks.append("alone?")
    if verse.mate is None:
        marks.append("RHYME")
    counts = "/".join(map(str, verse.counts)) or "?"
    columns = f"{verse.number:6} {counts:>6} {verse.metre or '-':>3} {verse.mate or '-':>6}  {verse.rhyme:10}"
    return f"{columns} {verse.text.rstrip():60} {' '.join(marks)}".rstrip()


def _print(report: VerseReport, faults_only: bool) -> None:
    print("  line counts metre mate  rhyme      text")
    for poem in report.poems:
        print(f"\n{poem.title or '(no title)'}")
        for verse in poem.verses:
            if not faults_only or verse.metre is None or verse.mate is None:
                print(show(verse))
    print(
        f"\n{len(report.verses)} verses: {report.classical:.1%} in a classical metre "
        f"({report.settled:.1%} in one that a neighbour shares), {report.rhymed:.1%} rhymed, "
        f"{report.distinct_rhymes} distinct rhymes"
    )
    print("metres: " + ", ".join(f"{number}: {count}" for number, count in report.metres.items()))


def main(arguments: Iterable[str] | None = None) -> int:
    """Print the report of one file."""
    parser = argparse.ArgumentParser(prog="python -m mini_transformer.evaluation.verse", description=__doc__)
    parser.add_argument("file", type=Path, help="a text in verse; titles stand alone in capitals")
    parser.add_argument("--faults", action="store_true", help="print only the verses that are marked")
    options = parser.parse_args(None if arguments is None else list(arguments))
    _print(analyse(options.file.read_text(encoding="utf-8")), options.faults)
    return 0


if __name__ == "__main__":
    sys.exit(main())
