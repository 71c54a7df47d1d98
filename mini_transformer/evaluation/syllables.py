"""Counting the syllables of a French verse by the classical rules.

The rules are those that every manual of versification gives: the mute e counts before a consonant and
falls before a vowel and at the end of the verse; two vowels that meet inside a word make one syllable or
two according to the word. Nothing here knows pronunciation: all is read from the spelling, old or new.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from mini_transformer.evaluation import lexicon

VOWELS = "aàâäeéèêëiîïoôöuùûüyœæ"
_WORD = re.compile(r"([a-zà-öø-ÿœæ]+)(['-]?)")
_ONE = frozenset({1})
_TWO = frozenset({2})
_EITHER = frozenset({1, 2})

_NUCLEUS = re.compile(
    r"eau|œu|œi(?=l)|aoû|aou(?=[tl])|(?<=[fptl])ao(?=n)|eoi|[eœ]ui(?=ll|ls?$)|oui(?=ll|ls?$)|uei(?=l)"
    r"|a[iîyu]|e[iîyuû]|o[iîyuùû]|uy|[" + VOWELS + "]"
)
_SILENT = [
    (re.compile(r"qu"), "q"),
    (re.compile(r"(?<=[gj])e(?=[aàâoôö])"), ""),
    (re.compile(r"gu(?=[aàâeéèêiîoôy])"), "g"),
    (re.compile(r"pays"), "païs"),
    (re.compile(r"abbay"), "abbaï"),
]
# The e of oublierai, dévouement, gaieté.
_MUTE_INSIDE = re.compile(r"e[rmt][aeéioèu]")
_AFTER_CLUSTER = re.compile(r"[bcdfgptv]h?[lr]$")


@dataclass(frozen=True, slots=True)
class Word:
    """What a verse needs to know of one word.

    `counts` are the possible numbers of syllables, mute ending left out; `ending` is "" (none), "e", "es"
    or "ent"; `hiatus` says that the mute ending follows a vowel (vie, années, avaient).
    """

    text: str
    counts: frozenset[int]
    ending: str
    hiatus: bool


def normalise(line: str) -> str:
    """The line in lower case, with plain apostrophes and hyphens and the digraph œ restored."""
    line = unicodedata.normalize("NFC", line).lower().replace("’", "'").replace("‑", "-").replace("&", " et ")
    line = re.sub(r"oe(?=u|il)", "œ", line)
    return re.sub(r"\boe(?=[dn])|æ", "é", line)


def tokens(line: str) -> list[tuple[str, str]]:
    """The words of a line, each with what joins it to the next: an apostrophe, a hyphen or nothing."""
    return [(match[1], match[2]) for match in _WORD.finditer(normalise(line))]


def split_ending(word: str) -> tuple[str, str]:
    """The word cut before its mute ending, and that ending ("" where there is none)."""
    for ending in ("e", "es", "ent"):
        stem = word.removesuffix(ending)
        if stem != word and any(letter in VOWELS for letter in stem.replace("qu", "q")):
            if ending != "ent" or not _sounded_ent(word):
                return stem, ending
            break
    if word.endswith(("guë", "guës")):
        return word[: word.index("guë") + 2], "e" if word.endswith("ë") else "es"
    return word, ""


def _sounded_ent(word: str) -> bool:
    if word.endswith("ment"):
        return word[:-4] not in lexicon.VERBS_IN_MER
    if word.endswith(("vient", "tient")):
        return bool(lexicon.GLIDES_I_ONE.search(word[:-4] + "/" + word[-4:])) or word in lexicon.FULL_ENT
    return word in lexicon.FULL_ENT


@lru_cache(maxsize=200_000)
def readings(word: str, verb: bool = False) -> tuple[Word, ...]:
    """The ways of counting one word: two for *couvent* and its like, one for the others.

    `verb` says that a subject *nous* allows -ions to be the ending of a verb.
    """
    cuts = [split_ending(word)]
    if word in lexicon.EITHER_ENT:
        cuts = [(word, ""), (word[:-3], "ent")]
    return tuple(_reading(word, stem, ending, verb) for stem, ending in cuts)


def _reading(word: str, stem: str, ending: str, verb: bool) -> Word:
    bare = stem
    for pattern, silent in _SILENT:
        bare = pattern.sub(silent, bare)
    # The u of qu and gu and the e of gea are gone: what is left has one nucleus to a sound.
    if ending and stem.endswith(("gu", "qu")) and not word.endswith(("ë", "ës")):
        bare = bare.removesuffix("u")
    hiatus = bool(ending) and bare[-1:] in VOWELS
    return Word(word, _counts(bare, verb), ending, hiatus)


def _counts(bare: str, verb: bool) -> frozenset[int]:
    nuclei = [(match.start(), match.end()) for match in _NUCLEUS.finditer(bare)]
    totals = {0}
    index = 0
    while index < len(nuclei):
        start, end = nuclei[index]
        size, step = _ONE, 1
        if index + 1 < len(nuclei) and nuclei[index + 1][0] == end:
            first, second = bare[start:end], bare[end : nuclei[index + 1][1]]
            if first not in ("a", "o") and _MUTE_INSIDE.match(bare, end):
                size, step = _EITHER if first in ("ay", "ey", "uy") else _ONE, 2
            elif (glides := _glide(first, second, bare, start, verb)) is not None:
                size, step = glides, 2
        totals = {total + more for total in totals for more in size}
        index += step
    return frozenset(totals)


def _glide(glide: str, following: str, bare: str, start: int, verb: bool) -> frozenset[int] | None:
    """The syllables of two vowels that meet, or None where they are no pair of glide and vowel."""
    before = bare[:start]
    marked = before + "/" + bare[start:]
    match glide:
        case "i" | "y" | "î":
            return _glide_i(following, before, bare[start + 1 :], marked, verb)
        case "ï":
            return _ONE if before[-1:] in ("a", "o") else _TWO
        case "u" | "û":
            if following not in ("i", "î", "y"):
                return _EITHER if lexicon.GLIDES_U_EITHER.search(marked) else _TWO
            if lexicon.GLIDES_UI_TWO.search(marked):
                return _TWO
            return _EITHER if lexicon.GLIDES_UI_EITHER.search(marked) else _ONE
        case "ou":
            if lexicon.GLIDES_OU_ONE.search(marked):
                return _ONE
            return _EITHER if lexicon.GLIDES_OU_EITHER.search(marked) else _TWO
        case "o":
            return _ONE if lexicon.GLIDES_O_ONE.search(marked) else _TWO
    return None


def _glide_i(following: str, before: str, after: str, marked: str, verb: bool) -> frozenset[int]:
    if before[-1:] == "y":
        return _ONE
    if lexicon.GLIDES_I_EITHER.search(marked):
        return _EITHER
    if _AFTER_CLUSTER.search(before):
        return _TWO
    if lexicon.GLIDES_I_ONE.search(marked):
        return _ONE
    in_ier = bool(lexicon.VERBS_IN_IER.fullmatch(before))
    if re.fullmatch(r"ers?|ez|èr", after):
        return _TWO if in_ier and after != "ers" else _ONE
    if following == "è":
        return _TWO if lexicon.GLIDES_IE_TWO.search(marked) else _ONE
    if after == "ons" and verb and not in_ier:
        return _EITHER if re.search(r"(?:[stx]|[lnp]|g)$", before) else _ONE
    if re.match(r"e(?:r[bcdfglmnprstv]|[bcdfgptv][lr]|[lt][lt])", after) and "qu" not in before:
        return _TWO if before.endswith("q") or in_ier else _ONE
    return _TWO


@dataclass(frozen=True, slots=True)
class Scan:
    """One way of counting a verse: its syllables, and after which of the first seven a word ends stressed."""

    count: int
    breaks: frozenset[int]


_CAESURAE = (4, 5, 6)
_WEAK = frozenset("le de je me te se ne que ce".split())
_CLITICS = frozenset("je ce".split())


@lru_cache(maxsize=100_000)
def elides(word: str) -> frozenset[bool]:
    """Whether a mute e falls before `word`; both answers where usage wavers."""
    if word in lexicon.EITHER_ELISION:
        return frozenset({True, False})
    if word[0] == "h":
        return frozenset({not lexicon.ASPIRATED_H.match(word)})
    return frozenset({word[0] in VOWELS and not lexicon.NO_ELISION.match(word)})


@lru_cache(maxsize=4096)
def scan(line: str) -> frozenset[Scan]:
    """Every way of counting `line` that the rules allow; none at all where it holds figures."""
    if any(character.isdigit() for character in line):
        return frozenset()
    words = tokens(line)
    states: set[tuple[int, int]] = {(0, 0)}
    nous = False
    for index, (text, joint) in enumerate(words):
        following = words[index + 1][0] if index + 1 < len(words) else None
        clitic = index > 0 and words[index - 1][1] == "-"
        steps = _steps(text, joint, following, clitic, nous)
        states = {
            (count + more, mask | (1 << (count + stop) if stop and count + stop in _CAESURAE else 0))
            for count, mask in states
            for more, stop in steps
        }
        nous = nous or text == "nous"
    return frozenset(Scan(c, frozenset(p for p in _CAESURAE if mask >> p & 1)) for c, mask in states)


@lru_cache(maxsize=400_000)
def _steps(text: str, joint: str, following: str | None, clitic: bool, nous: bool) -> frozenset[tuple[int, int]]:
    """What a word adds to a verse: pairs of its syllables and the one a caesura may follow (0 for none)."""
    steps = set()
    for word in readings(text, nous and text.endswith("ions")):
        ending, counts = word.ending, word.counts
        if clitic and text in _CLITICS:
            ending, counts = "e", frozenset({0})
        for mute in _mute(word, ending, following, clitic):
            for count in counts:
                stressed = not joint and not mute and text not in _WEAK
                if ending in ("es", "ent") and mute:
                    stressed = False
                steps.add((count + mute, count if stressed else 0))
    return frozenset(steps)


def _mute(word: Word, ending: str, following: str | None, clitic: bool) -> set[int]:
    if clitic and word.text == "le" and following is not None and True in elides(following):
        return {0, -1}
    if not ending or following is None:
        return {0}
    if ending == "e":
        fallen = {0 if elision else 1 for elision in elides(following)}
        return {0, 1} if word.hiatus and fallen == {1} else fallen
    if word.hiatus:
        return {0} if word.text.endswith(("aient", "oient")) else {0, 1}
    return {1}


def syllable_counts(line: str) -> frozenset[int]:
    """The numbers of syllables that the rules allow `line`.

    One number as a rule; several where good usage hesitates (hier, ancien); none where the line holds
    figures, which have to be written out. A line without words has none but zero.
    """
    return frozenset(reading.count for reading in scan(line))
