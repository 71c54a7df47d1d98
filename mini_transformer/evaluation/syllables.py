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
_WORD = re.compile(r"([a-zà-öø-ÿœæ]+)(?:(['-])(?=[a-zà-öø-ÿœæ])|(\s*[^\w\s'-]|\s*--))?")
_NONE = frozenset({0})
_NONE_OR_ONE = frozenset({0, 1})
_ONE = frozenset({1})
_TWO = frozenset({2})
_EITHER = frozenset({1, 2})

_NUCLEUS = re.compile(
    r"eau|œu|œi(?=l)|aoû|aou(?=[tl])|(?<=[fptl])ao(?=n)|eoi|[eœ]ui(?=ll|ls?$)|oui(?=ll|ls?$)|uei(?=l)"
    r"|[aâ][iîyu]|e[iîyuû]|o[iîyuùû]|uy|[" + VOWELS + "]"
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
# What follows the i of fierté, siecle, assiette.
_OPEN_E = re.compile(r"e(?:r[bcdfglmnprstv]|[bcdfgptv][lr]|ll|tt)")
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
    return re.sub(r"\boe(?=[dn])|(?<=ph)oe(?=[bn])|ae(?![lrë])|æ", "é", line)


def tokens(line: str) -> list[tuple[str, str]]:
    """The words of a line, each with what follows it: an apostrophe, a hyphen, "," for any stop, or nothing."""
    return [(match[1], match[2] or ("," if match[3] else "")) for match in _WORD.finditer(normalise(line))]


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
        return word[:-3] not in lexicon.VERBS_IN_MER
    if word.endswith(("vient", "tient")):
        return bool(lexicon.GLIDES_I_ONE.search(word[:-4] + "/" + word[-4:])) or word in lexicon.FULL_ENT
    # A verb would have è there (ils cèdent).
    return word in lexicon.FULL_ENT or bool(re.search(r"(?:é[bcdlnprstv]|esc)ent$", word))


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
    return Word(word, _counts(bare, ending, verb), ending, hiatus)


def _counts(bare: str, ending: str, verb: bool) -> frozenset[int]:
    nuclei = [(match.start(), match.end()) for match in _NUCLEUS.finditer(bare)]
    totals = {0}
    index = 0
    while index < len(nuclei):
        start, end = nuclei[index]
        sizes: frozenset[int] | None = None
        touches_next = index + 1 < len(nuclei) and nuclei[index + 1][0] == end
        if index and nuclei[index - 1][1] == start and _MUTE_INSIDE.match(bare, start):
            vowel = bare[nuclei[index - 1][0] : start]
            sizes = _ONE if vowel in ("a", "o") else _NONE_OR_ONE if vowel[-1] == "y" else _NONE
        elif touches_next and not _MUTE_INSIDE.match(bare, end):
            sizes = _glide(bare[start:end], bare[end : nuclei[index + 1][1]], bare, start, ending, verb)
            index += sizes is not None
        totals = {total + more for total in totals for more in (_ONE if sizes is None else sizes)}
        index += 1
    return frozenset(totals)


def _glide(glide: str, following: str, bare: str, start: int, ending: str, verb: bool) -> frozenset[int] | None:
    """The syllables of two vowels that meet, or None where they are no pair of glide and vowel."""
    before = bare[:start]
    marked = before + "/" + bare[start:]
    match glide:
        case "i" | "y" | "î":
            return _glide_i(following, before, bare[start + 1 :], marked, ending, verb)
        case "ï":
            return _ONE if before[-1:] in ("a", "o") else _TWO
        case "u" | "û":
            if following not in ("i", "î", "y"):
                return _EITHER if lexicon.GLIDES_U_EITHER.search(marked) else _TWO
            if lexicon.GLIDES_UI_TWO.search(marked):
                return _TWO
            return _EITHER if lexicon.GLIDES_UI_EITHER.search(marked) else _ONE
        case "ou":
            return _by_family(marked, lexicon.GLIDES_OU_ONE, lexicon.GLIDES_OU_EITHER)
        case "o":
            return _by_family(marked, lexicon.GLIDES_O_ONE, lexicon.GLIDES_O_EITHER)
    return None


def _by_family(marked: str, one: re.Pattern[str], either: re.Pattern[str]) -> frozenset[int]:
    return _ONE if one.search(marked) else _EITHER if either.search(marked) else _TWO


def _glide_i(following: str, before: str, after: str, marked: str, ending: str, verb: bool) -> frozenset[int]:
    if before[-1:] == "y":
        return _ONE
    if lexicon.GLIDES_I_EITHER.search(marked):
        return _EITHER
    if _AFTER_CLUSTER.search(before):
        return _TWO
    if lexicon.GLIDES_I_ONE.search(marked):
        return _ONE
    in_ier = bool(lexicon.VERBS_IN_IER.fullmatch(before))
    if after in ("er", "ez", "ers") or (after == "èr" and ending == "ent"):
        return _TWO if in_ier and after != "ers" else _ONE
    if following == "è" or _OPEN_E.match(after):
        return _TWO if lexicon.GLIDES_IE_TWO.search(marked) else _ONE
    if after == "ons" and not in_ier:
        if lexicon.VERBS_IN_IONS.search(before):
            return _ONE
        return _EITHER if verb and before[-1:] not in VOWELS else _TWO
    return _TWO


@dataclass(frozen=True, slots=True)
class Scan:
    """One way of counting a verse: its syllables, and after which of the fourth to sixth a word ends stressed."""

    count: int
    breaks: frozenset[int]


_CAESURAE = (4, 5, 6)
# Words that lean on the next one: no caesura stands after them, unless they follow their verb (dit-il).
WEAK = lexicon.words(
    """le la les l un une des du au aux mon ton son ma ta sa mes tes ses nos vos leurs ce cet cette ces
    et à de par sur dans en je il ils tu on me te se ne que"""
)
_IMPERFECT = re.compile(r"(?<!^v)(?<!^cr)(?<!rev)(?<!rév)[ao]ient$")
_CLITICS = frozenset({"je", "ce"})


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
    nous = any(text == "nous" for text, _ in words)
    for index, (text, joint) in enumerate(words):
        following = words[index + 1][0] if index + 1 < len(words) else None
        before, link = words[index - 1] if index else ("", "")
        # A pronoun after its verb, and "un" in l'un, pas un, bear a stress.
        leans = link == "-" or (text == "un" and (link == "'" or before in ("pas", "quelqu")))
        steps = _steps(text, joint, following, link == "-", leans, nous)
        states = {
            (count + more, mask | (1 << (count + stop) if count + stop in _CAESURAE else 0))
            for count, mask in states
            for more, stop in steps
        }
    return frozenset(Scan(c, frozenset(p for p in _CAESURAE if mask >> p & 1)) for c, mask in states)


@lru_cache(maxsize=400_000)
def _steps(
    text: str, joint: str, following: str | None, clitic: bool, leans: bool, nous: bool
) -> frozenset[tuple[int, int]]:
    """What a word adds to a verse: pairs of its syllables and the one a caesura may follow (-99 for none)."""
    steps = set()
    for word in readings(text, nous and text.endswith("ions")):
        ending, counts = word.ending, word.counts
        if clitic and text in _CLITICS:
            ending, counts = "e", frozenset({0})
        for mute in _mute(word, ending, following, clitic):
            for count in counts:
                stressed = not mute and (joint == "," or (not joint and (leans or text not in WEAK)))
                steps.add((count + mute, count if stressed else -99))
    return frozenset(steps)


def _mute(word: Word, ending: str, following: str | None, clitic: bool) -> set[int]:
    if clitic and word.text == "le" and following is not None and True in elides(following):
        return {0, -1}
    if not ending or following is None:
        return {0}
    if word.text == "encore":
        # Editions in modern spelling print encore where the verse has encor.
        return {0} if elides(following) == {True} else {0, 1}
    if ending == "e":
        return {0 if elision else 1 for elision in elides(following)}
    # The plural of the imperfect and its like have no e to count; elsewhere it counts, as old poets had it.
    return {0} if word.hiatus and _IMPERFECT.search(word.text) else {1}


def syllable_counts(line: str) -> frozenset[int]:
    """The numbers of syllables that the rules allow `line`.

    One number as a rule; several where good usage hesitates (hier, ancien); none where the line holds
    figures, which have to be written out. A line without words has none but zero.
    """
    return frozenset(reading.count for reading in scan(line))
