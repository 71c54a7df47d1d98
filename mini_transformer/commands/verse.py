"""`verse`: syllables, metre and rhyme of each verse of a text."""

from collections.abc import Sequence

from mini_transformer.cli import Parser, add_fields, path
from mini_transformer.config import RunConfig
from mini_transformer.data.reading import decode, normalise
from mini_transformer.errors import UserError
from mini_transformer.settings import fill
from mini_transformer.verse.scansion import Verse, analyse

LEGEND = """\
line     line number in the file
counts   syllables; several where usage varies, ? if there are digits
metre    classical metre: 2 to 8, 10 (4 + 6) or 12 (6 + 6) syllables; - if none fits
partner  line that it rhymes with, at most four verses away; - if there is none
sounds   of the rhyme: U ou, y u, E è, A an, I in, O on, W un, Q eu, S ch, Z j, N gn, J yod, @ mute e
METRE    no classical metre: another length, no caesura, or a 5 or 7 among even metres
RHYME    no rhyme within four verses
alone?   no verse within four has the same metre: allowed, but it may be a mistake
"""


def main(argv: Sequence[str]) -> int:
    """Print each verse of a file with its syllables, metre and rhyme, then a summary."""
    parser = Parser(prog="verse", description="Check French verse by the classical rules: syllables, metre and rhyme.")
    parser.add_argument("file", type=path, metavar="FILE", help="text in verse; titles are lines in capitals")
    parser.add_argument("--faults", action="store_true", help="print only the verses marked METRE or RHYME")
    add_fields(parser, RunConfig, ["encoding"])
    given = parser.parse(argv)
    report = analyse("".join(normalise(decode(given.file, fill(RunConfig, vars(given)).encoding))))
    if not report.verses:
        raise UserError(f"{given.file}: no verse found, only blank lines, titles or lines without words")
    print(f"{LEGEND}\n{'line':>6} {'counts':>6} metre partner  {'sounds':10} text")
    for poem in report.poems:
        verses = [verse for verse in poem.verses if not given.faults or verse.metre is None or verse.partner is None]
        if verses:
            print(f"\n{poem.title or '(no title)'}", *map(_format_verse, verses), sep="\n")
    settled = f"{report.settled:.1%} in one that a verse within four also has"
    rhymed = f"{report.rhymed:.1%} rhymed, {report.distinct_rhymes} distinct rhymes"
    metres = ", ".join(f"{metre}: {count}" for metre, count in report.metres.items())
    print(f"\n{len(report.verses)} verses: {report.classical:.1%} in a classical metre ({settled}), {rhymed}")
    print(f"verses of each metre: {metres or 'none'}")
    return 0


def _format_verse(verse: Verse) -> str:
    marks = ["METRE"] if verse.metre is None else ["alone?"] if verse.alone else []
    marks += ["RHYME"] if verse.partner is None else []
    counts = "/".join(map(str, verse.counts)) or "?"
    columns = f"{verse.number:6} {counts:>6} {verse.metre or '-':>5} {verse.partner or '-':>7}  {verse.rhyme:10}"
    return f"{columns} {verse.text.rstrip():60} {' '.join(marks)}".rstrip()
