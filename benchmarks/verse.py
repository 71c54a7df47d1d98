"""How well the verse checker tells real verse from broken verse, prose and shuffled verse.

A checker that accepts everything would find all real verse classical; these measures show what it rejects:
`python benchmarks/verse.py ../shared/data`.
"""

import argparse
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from mini_transformer.verse.scansion import VerseReport, analyse, metre
from mini_transformer.verse.syllables import split_words, syllable_counts

# How many verses before and after a broken one are scanned with it.
_CONTEXT = 8
_PROSE_WIDTH = 36


def without_notes(text: str) -> str:
    """`text` without the editor's notes: paragraphs with _italics_ or a line of more than 13 syllables."""
    parts = re.split(r"(\n\n+)", text)
    return "".join(part for part in parts if not _is_note(part))


def _is_note(paragraph: str) -> bool:
    return "_" in paragraph or any(min(syllable_counts(line), default=99) > 13 for line in paragraph.split("\n"))


def plays(text: str, first: str, end: str) -> list[str]:
    """The plays from the one titled `first` up to, but not including, the one titled `end`."""
    pieces = text.split("\n\n\n")
    titles = [piece.strip().split("\n")[0] for piece in pieces]
    return [piece.strip() for piece in pieces[titles.index(first) : titles.index(end)]]


def words_with_syllables(line: str) -> list[int]:
    """The indices, among the words separated by spaces, of those of at least one syllable."""
    return [index for index, word in enumerate(line.split()) if len(split_words(word)) == 1 and _has_syllables(word)]


def _has_syllables(word: str) -> bool:
    return min(syllable_counts(word), default=0) > 0


def delete_word(line: str, rng: random.Random) -> str:
    """`line` without one of its words of at least one syllable (unchanged if it has none)."""
    indices, words = words_with_syllables(line), line.split()
    if indices:
        del words[rng.choice(indices)]
    return " ".join(words)


def insert_word(line: str, pool: Sequence[str], rng: random.Random) -> str:
    """`line` with one word of `pool` inserted at random."""
    words = line.split()
    words.insert(rng.randint(0, len(words)), rng.choice(pool))
    return " ".join(words)


def judge_broken(lines: Sequence[str], break_verse: Callable[[str], str], times: int, rng: random.Random) -> str:
    """Break one verse at a time in its context; report how many are still accepted, and as which metres."""
    found: Counter[int | None] = Counter()
    among_alexandrines: Counter[int | None] = Counter()
    unmarked = 0
    for index in rng.choices(range(len(lines)), k=times):
        low = max(0, index - _CONTEXT)
        around = list(lines[low : index + _CONTEXT + 1])
        broken = break_verse(around[index - low])
        if broken.split() == around[index - low].split() or not split_words(broken):
            continue
        around[index - low] = broken
        verse = analyse("\n".join(around)).verses[index - low]
        result = verse.metre
        unmarked += result is not None and not verse.alone
        found[result] += 1
        near = [metre(line) for line in [*around[index - low - 2 : index - low], *around[index - low + 1 :][:2]]]
        if metre(lines[index]) == 12 and set(near) == {12}:
            among_alexandrines[result] += 1
    return (
        f"all: {_shares(found)}\n"
        f"    accepted and not marked alone?: {unmarked / (found.total() or 1):.1%}\n"
        f"    alexandrines among alexandrines: {_shares(among_alexandrines)}"
    )


def _shares(counts: Counter[int | None]) -> str:
    total = counts.total() or 1
    parts = ", ".join(f"{number}: {count / total:.1%}" for number, count in counts.most_common() if number)
    return f"{1 - counts[None] / total:.1%} of {counts.total()} accepted ({parts})"


def cut_prose(text: str, passages: int, rng: random.Random) -> list[str]:
    """Passages of prose, each broken between words into twenty lines of at most 36 characters."""
    words = text.split()
    cut = []
    for _ in range(passages):
        start = rng.randrange(len(words) - 400)
        lines = [""]
        for word in words[start : start + 400]:
            if len(lines[-1]) + 1 + len(word) > _PROSE_WIDTH:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        # A line with digits cannot be counted, so it would be rejected for the wrong reason.
        cut.append("\n".join(islice((line for line in lines if line and not re.search(r"\d", line)), 20)))
    return cut


def _summary(report: VerseReport) -> str:
    return (
        f"{len(report.verses)} verses, {report.classical:.2%} classical, {report.settled:.2%} settled, "
        f"{report.rhymed:.2%} rhymed, metres {report.metres}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every number of docs/verse.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the shared texts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)

    def read(name: str) -> str:
        text: str = (options.data / name).read_text(encoding="utf-8")
        return text

    fables = read("lafontaine.txt")
    print("lafontaine.txt, every line:", _summary(analyse(fables)))
    fables = without_notes(fables)
    print("lafontaine.txt, without notes:", _summary(analyse(fables)))
    print("lafontaine-valid.txt:", _summary(analyse(without_notes(read("lafontaine-valid.txt")))))
    print("baudelaire.txt:", _summary(analyse(without_notes(read("baudelaire.txt")))))
    stage = plays(read("theatre-en-vers.txt"), "NICOMÈDE", "ESOPE À LA COUR")
    stage_lines = [line for play in stage for line in play.split("\n")[1:] if line.strip()]
    print("theatre, first 5000 lines:", _summary(analyse("\n".join(stage_lines[:5000]))))
    print(f"theatre, all {len(stage)} plays:", _summary(analyse("\n\n\n".join(stage))))

    fresh = plays(read("theatre-en-vers.txt"), "ESOPE À LA COUR", "LA MORT DE LOUIS XVI")
    print(f"theatre, the next {len(fresh)} plays:", _summary(analyse("\n\n\n".join(fresh))))

    fable_lines = [verse.text for verse in analyse(fables).verses]
    for name, lines in (("fables", fable_lines), ("theatre", stage_lines[:5000])):
        pool = [split_words(line.split()[index])[0][0] for line in lines for index in words_with_syllables(line)]
        print(f"{name}, one word deleted:")
        print("   ", judge_broken(lines, partial(delete_word, rng=rng), 10_000, rng))
        print(f"{name}, one word inserted:")
        print("   ", judge_broken(lines, partial(insert_word, pool=pool, rng=rng), 10_000, rng))

    prose = cut_prose(read("romans.txt"), 1000, rng)
    single = [metre(line) for passage in prose for line in passage.split("\n")]
    print("prose, line by line:", _shares(Counter(single)))
    report = analyse("\n\n\n".join(prose))
    print("prose, as poems:", _summary(report))
    long = sum(report.metres.get(number, 0) for number in (12, 10, 8)) / len(report.verses)
    print(f"prose accepted as 12, 10 or 8: {long:.1%}")
    rng.shuffle(fable_lines)
    print(f"shuffled fables, rhymed: {analyse(chr(10).join(fable_lines)).rhymed:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
