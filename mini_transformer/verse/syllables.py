"""Syllable count of a French verse by the classical rules.

The rules are those of every manual of versification. The mute e counts before a consonant, but not before a vowel
(elision) or at the end of the verse. Two vowels that meet inside a word make one syllable (synaeresis) or two
(diaeresis), depending on the word. All is read from the spelling, old or modern, without a pronunciation dictionary.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from mini_transformer.verse import lexicon

VOWELS = "aàâäeéèêëiîïoôöuùûüyœæ"
_WORD = re.compile(r"([a-zà-öø-ÿœæ]+)(?:(['-])(?=[a-zà-öø-ÿœæ])|(\s*[^\w\s'-]|\s*--))?")
_ZERO = frozenset({0})
_ZERO_OR_ONE = frozenset({0, 1})
_ONE = frozenset({1})
_ONE_OR_TWO = frozenset({1, 2})
_TWO = frozenset({2})

_NUCLEUS = re.compile(
    r"eau|œu|œi(?=l)|aoû|aou(?=[tl])|(?<=[fptl])ao(?=n)|eoi|[eœ]ui(?=ll|ls?$)|oui(?=ll|ls?$)|uei(?=l)"
    r"|[aâ][iîyu]|e[iîyuû]|o[iîyuùû]|uy|[" + VOWELS + "]"
)
# Silent vowels are removed; ay stands for two vowels in pays and abbaye.
_RESPELLINGS = [
    (re.compile(r"qu"), "q"),
    (re.compile(r"(?<=[gj])e(?=[aàâoôö])"), ""),
    (re.compile(r"gu(?=[aàâeéèêiîoôy])"), "g"),
    (re.compile(r"pays"), "païs"),
    (re.compile(r"abbay"), "abbaï"),
]
# The mute e of oublierai, dévouement, gaieté.
_MUTE_E_INSIDE = re.compile(r"e[rmt][aeéioèu]")
# The open e after the i of fierté, siecle, assiette.
_OPEN_E = re.compile(r"e(?:r[bcdfglmnprstv]|[bcdfgptv][lr]|ll|tt)")
_CONSONANT_WITH_L_OR_R = re.compile(r"[bcdfgptv]h?[lr]$")


@dataclass(frozen=True, slots=True)
class WordReading:
    """One way of reading a word.

    `counts` are the possible syllable counts, without the mute ending; `ending` is that ending: "" (none), "e",
    "es" or "ent"; `after_vowel` says that it follows a vowel (vie, années, avaient).
    """

    text: str
    counts: frozenset[int]
    ending: str
    after_vowel: bool


def normalise(line: str) -> str:
    """The line in lower case, with plain apostrophes and hyphens and the ligature œ restored."""
    line = unicodedata.normalize("NFC", line).lower().replace("’", "'").replace("‑", "-").replace("&", " et ")
    line = re.sub(r"oe(?=u|il)", "œ", line)
    return re.sub(r"\boe(?=[dn])|(?<=ph)oe(?=[bn])|ae(?![lrë])|æ", "é", line)


def split_words(line: str) -> list[tuple[str, str]]:
    """The words of a line, each with what follows it: an apostrophe, a hyphen, "," for punctuation, or ""."""
    return [(match[1], match[2] or ("," if match[3] else "")) for match in _WORD.finditer(normalise(line))]


def split_ending(word: str) -> tuple[str, str]:
    """The word without its mute ending, and that ending ("" if there is none)."""
    for ending in ("e", "es", "ent"):
        stem = word.removesuffix(ending)
        if stem != word and any(letter in VOWELS for letter in stem.replace("qu", "q")):
            if ending != "ent" or not _is_ent_sounded(word):
                return stem, ending
            break
    if word.endswith(("guë", "guës")):
        return word[: word.index("guë") + 2], "e" if word.endswith("ë") else "es"
    return word, ""


def _is_ent_sounded(word: str) -> bool:
    if word.endswith("ment"):
        return word[:-3] not in lexicon.VERBS_IN_MER
    if word.endswith(("vient", "tient")):
        return bool(lexicon.SYNAERESIS_I.search(word[:-4] + "/" + word[-4:])) or word in lexicon.SOUNDED_ENT
    # é before -ent rules out a verb, which would have è (ils cèdent).
    return word in lexicon.SOUNDED_ENT or bool(re.search(r"(?:é[bcdlnprstv]|esc)ent$", word))


@lru_cache(maxsize=200_000)
def word_readings(word: str, after_nous: bool = False) -> tuple[WordReading, ...]:
    """The ways of reading a word: two for *couvent* and the like, one for all others.

    `after_nous` says that the verse has the pronoun *nous*, so that -ions may be the ending of a verb.
    """
    splits = [split_ending(word)]
    if word in lexicon.EITHER_ENT:
        splits = [(word, ""), (word[:-3], "ent")]
    return tuple(_read_word(word, stem, ending, after_nous) for stem, ending in splits)


def _read_word(word: str, stem: str, ending: str, after_nous: bool) -> WordReading:
    for pattern, respelling in _RESPELLINGS:
        stem = pattern.sub(respelling, stem)
    if ending and stem.endswith("gu") and not word.endswith(("ë", "ës")):
        stem = stem.removesuffix("u")
    return WordReading(word, _count(stem, ending, after_nous), ending, bool(ending) and stem[-1:] in VOWELS)


def _count(stem: str, ending: str, after_nous: bool) -> frozenset[int]:
    nuclei = [match.span() for match in _NUCLEUS.finditer(stem)]
    totals = {0}
    index = 0
    while index < len(nuclei):
        start, end = nuclei[index]
        counts: frozenset[int] | None = None
        touches_next = index + 1 < len(nuclei) and nuclei[index + 1][0] == end
        if index and nuclei[index - 1][1] == start and _MUTE_E_INSIDE.match(stem, start):
            vowel = stem[nuclei[index - 1][0] : start]
            counts = _ONE if vowel in ("a", "o") else _ZERO_OR_ONE if vowel[-1] == "y" else _ZERO
        elif touches_next and not _MUTE_E_INSIDE.match(stem, end):
            counts = _count_pair(stem[:start], stem[start:end], stem[end:], ending, after_nous)
            index += counts is not None
        totals = {total + count for total in totals for count in counts or _ONE}
        index += 1
    return frozenset(totals)


def _count_pair(before: str, first: str, after: str, ending: str, after_nous: bool) -> frozenset[int] | None:
    """The syllables of two vowels that meet, or None if the first cannot be a glide."""
    marked = f"{before}/{first}{after}"
    match first:
        case "i" | "y" | "î":
            return _count_i_pair(before, after, marked, ending, after_nous)
        case "ï":
            return _ONE if before[-1:] in ("a", "o") else _TWO
        case "u" | "û":
            if after[0] not in "iîy":
                return _ONE_OR_TWO if lexicon.EITHER_U.search(marked) else _TWO
            if lexicon.DIAERESIS_UI.search(marked):
                return _TWO
            return _ONE_OR_TWO if lexicon.EITHER_UI.search(marked) else _ONE
        case "ou":
            return _look_up(marked, lexicon.SYNAERESIS_OU, lexicon.EITHER_OU)
        case "o":
            return _look_up(marked, lexicon.SYNAERESIS_O, lexicon.EITHER_O)
    return None


def _look_up(marked: str, synaeresis: re.Pattern[str], either: re.Pattern[str]) -> frozenset[int]:
    return _ONE if synaeresis.search(marked) else _ONE_OR_TWO if either.search(marked) else _TWO


def _count_i_pair(before: str, after: str, marked: str, ending: str, after_nous: bool) -> frozenset[int]:
    if before[-1:] == "y":
        return _ONE
    if lexicon.EITHER_I.search(marked):
        return _ONE_OR_TWO
    if _CONSONANT_WITH_L_OR_R.search(before):
        return _TWO
    if lexicon.SYNAERESIS_I.search(marked):
        return _ONE
    verb_in_ier = bool(lexicon.VERBS_IN_IER.fullmatch(before))
    if after in ("er", "ez", "ers") or (after == "èr" and ending == "ent"):
        return _TWO if verb_in_ier and after != "ers" else _ONE
    if after[0] == "è" or _OPEN_E.match(after):
        return _TWO if lexicon.DIAERESIS_IE.search(marked) else _ONE
    if after == "ons" and not verb_in_ier:
        if lexicon.SYNAERESIS_IONS.search(before):
            return _ONE
        return _ONE_OR_TWO if after_nous and before[-1:] not in VOWELS else _TWO
    return _TWO


class Scansion(NamedTuple):
    """One way of scanning a verse: its number of syllables, and those (4, 5, 6) that a caesura may follow."""

    syllables: int
    caesurae: frozenset[int]


_CAESURA_SYLLABLES = (4, 5, 6)
# Proclitics lean on the next word: no caesura follows them, unless they come after their verb (dit-il).
PROCLITICS = lexicon.word_list(
    """le la les l un une des du au aux mon ton son ma ta sa mes tes ses nos vos leurs ce cet cette ces
    et à de par sur dans en je il ils tu on me te se ne que"""
)
_IMPERFECT = re.compile(r"(?<!^v)(?<!^cr)(?<!rev)(?<!rév)[ao]ient$")
_PRONOUNS_IN_MUTE_E = frozenset({"je", "ce"})


@lru_cache(maxsize=100_000)
def elides(word: str) -> frozenset[bool]:
    """Whether a mute e is elided before `word`; both answers where usage varies."""
    if word in lexicon.EITHER_ELISION:
        return frozenset({True, False})
    if word[0] == "h":
        return frozenset({not lexicon.ASPIRATED_H.match(word)})
    return frozenset({word[0] in VOWELS and not lexicon.NO_ELISION.match(word)})


@lru_cache(maxsize=4096)
def scan(line: str) -> frozenset[Scansion]:
    """Every scansion of `line` that the rules allow; none if it has digits."""
    if any(character.isdigit() for character in line):
        return frozenset()
    words = split_words(line)
    scansions = {Scansion(0, frozenset())}
    nous = any(text == "nous" for text, _ in words)
    for index, (text, separator) in enumerate(words):
        following = words[index + 1][0] if index + 1 < len(words) else None
        before, separator_before = words[index - 1] if index else ("", "")
        enclitic = separator_before == "-"
        # A pronoun after its verb and "un" in l'un, pas un are stressed.
        stressed = enclitic or (text == "un" and (separator_before == "'" or before in ("pas", "quelqu")))
        additions = _additions(text, separator, following, enclitic, stressed, nous)
        scansions = {
            Scansion(
                total := count + added, caesurae | {total} if caesura and total in _CAESURA_SYLLABLES else caesurae
            )
            for count, caesurae in scansions
            for added, caesura in additions
        }
    return frozenset(scansions)


@lru_cache(maxsize=400_000)
def _additions(
    text: str, separator: str, following: str | None, enclitic: bool, stressed: bool, nous: bool
) -> frozenset[tuple[int, bool]]:
    """What a word adds to a verse: pairs of a syllable count and whether a caesura may follow."""
    additions = set()
    for word in word_readings(text, nous and text.endswith("ions")):
        ending, counts = word.ending, word.counts
        if enclitic and text in _PRONOUNS_IN_MUTE_E:
            ending, counts = "e", _ZERO
        for mute in _count_mute_ending(word, ending, following, enclitic):
            ends_stressed = separator == "," or (not separator and (stressed or text not in PROCLITICS))
            additions |= {(count + mute, not mute and ends_stressed) for count in counts}
    return frozenset(additions)


def _count_mute_ending(word: WordReading, ending: str, following: str | None, enclitic: bool) -> set[int]:
    """The syllables that the mute ending may add: 0, 1, or -1 for the e of an elided *le* (prends-le)."""
    if enclitic and word.text == "le" and following is not None and True in elides(following):
        return {0, -1}
    if not ending or following is None:
        return {0}
    if word.text == "encore":
        # Editions in modern spelling print encore where the verse has encor.
        return {0} if elides(following) == {True} else {0, 1}
    if ending == "e":
        return {0 if elision else 1 for elision in elides(following)}
    # -aient, -oient never count; elsewhere -es and -ent count after a vowel, as in the oldest verse.
    return {0} if word.after_vowel and _IMPERFECT.search(word.text) else {1}


def syllable_counts(line: str) -> frozenset[int]:
    """The syllable counts that the rules allow for `line`.

    Usually one; several where usage varies (hier, ancien); none if the line has digits, which must be spelt out.
    A line without words has zero syllables.
    """
    return frozenset(scansion.syllables for scansion in scan(line))
