"""How well the verse checker tells verse from what is not: true verse, broken verse, prose, shuffled verse.

A checker that accepts everything would find every true verse classical. These measures say what it refuses:
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

from mini_transformer.evaluation.syllables import syllable_counts, tokens
from mini_transformer.evaluation.verse import VerseReport, analyse, metre

# The verses that stand around a broken one while it is judged.
_MARGIN = 8
_PROSE_WIDTH = 36


def without_notes(text: str) -> str:
    """`text` less the paragraphs of editors' prose: those with _italics_ or a line beyond 13 syllables."""
    parts = re.split(r"(\n\n+)", text)
    return "".join(part for part in parts if not _is_note(part))


def _is_note(paragraph: str) -> bool:
    return "_" in paragraph or any(min(syllable_counts(line), default=99) > 13 for line in paragraph.split("\n"))


def plays(text: str, first: str, end: str) -> list[str]:
    """The plays from the one titled `first` up to, not with, the one titled `end`."""
    pieces = text.split("\n\n\n")
    titles = [piece.strip().split("\n")[0] for piece in pieces]
    return [piece.strip() for piece in pieces[titles.index(first) : titles.index(end)]]


def full_words(line: str) -> list[int]:
    """The places, among the words that spaces part, of those worth one full syllable or more."""
    return [place for place, word in enumerate(line.split()) if len(tokens(word)) == 1 and _is_full(word)]


def _is_full(word: str) -> bool:
    return min(syllable_counts(word), default=0) > 0


def delete_word(line: str, chance: random.Random) -> str:
    """`line` without one of its full words (unchanged where it has none)."""
    places, words = full_words(line), line.split()
    if places:
        del words[chance.choice(places)]
    return " ".join(words)


def insert_word(line: str, pool: Sequence[str], chance: random.Random) -> str:
    """`line` with one word of `pool` somewhere."""
    words = line.split()
    words.insert(chance.randint(0, len(words)), chance.choice(pool))
    return " ".join(words)


def judge_broken(lines: Sequence[str], spoil: Callable[[str], str], times: int, chance: random.Random) -> str:
    """Break verses one at a time among their neighbours and say as what they are still accepted."""
    found: Counter[int | None] = Counter()
    among_twelves: Counter[int | None] = Counter()
    unmarked = 0
    for place in chance.choices(range(len(lines)), k=times):
        low = max(0, place - _MARGIN)
        around = list(lines[low : place + _MARGIN + 1])
        broken = spoil(around[place - low])
        if broken.split() == around[place - low].split() or not tokens(broken):
            continue
        around[place - low] = broken
        verse = analyse("\n".join(around)).verses[place - low]
        result = verse.metre
        unmarked += result is not None and not verse.alone
        found[result] += 1
        near = [metre(line) for line in [*around[place - low - 2 : place - low], *around[place - low + 1 :][:2]]]
        if metre(lines[place]) == 12 and set(near) == {12}:
            among_twelves[result] += 1
    kept = f"accepted and not alone of their metre: {unmarked / (found.total() or 1):.1%}"
    return f"all: {_shares(found)}\n    {kept}\n    twelves among twelves: {_shares(among_twelves)}"


def _shares(counts: Counter[int | None]) -> str:
    total = counts.total() or 1
    parts = ", ".join(f"{kind}: {count / total:.1%}" for kind, count in counts.most_common() if kind)
    return f"{1 - counts[None] / total:.1%} of {counts.total()} accepted ({parts})"


def cut_prose(text: str, passages: int, chance: random.Random) -> list[str]:
    """Passages of prose cut into twenty lines of at most 36 characters, between words."""
    words = text.split()
    cut = []
    for _ in range(passages):
        start = chance.randrange(len(words) - 400)
        lines = [""]
        for word in words[start : start + 400]:
            if len(lines[-1]) + 1 + len(word) > _PROSE_WIDTH:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        # A digit makes a line uncountable; that would refuse prose for a wrong reason.
        cut.append("\n".join(islice((line for line in lines if line and not re.search(r"\d", line)), 20)))
    return cut


def _summary(report: VerseReport) -> str:
    return (
        f"{len(report.verses)} verses, {report.classical:.2%} classical, {report.settled:.2%} settled, "
        f"{report.rhymed:.2%} rhymed, metres {report.metres}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every figure of docs/verse.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="the folder of the shared texts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    chance = random.Random(options.seed)

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
        pool = [tokens(line.split()[place])[0][0] for line in lines for place in full_words(line)]
        print(f"broken {name}, one word less:")
        print("   ", judge_broken(lines, partial(delete_word, chance=chance), 10_000, chance))
        print(f"broken {name}, one word more:")
        print(
            "   ",
            judge_broken(lines, partial(insert_word, pool=pool, chance=chance), 10_000, chance),
        )

    prose = cut_prose(read("romans.txt"), 1000, chance)
    single = [metre(line) for passage in prose for line in passage.split("\n")]
    print("prose, line by line:", _shares(Counter(single)))
    report = analyse("\n\n\n".join(prose))
    print("prose, as poems:", _summary(report))
    long = sum(report.metres.get(kind, 0) for kind in (12, 10, 8)) / len(report.verses)
    print(f"prose accepted as 12, 10 or 8: {long:.1%}")
    chance.shuffle(fable_lines)
    print(f"shuffled fables, rhymed: {analyse(chr(10).join(fable_lines)).rhymed:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
