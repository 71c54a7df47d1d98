"""Syllable count of a French verse by the classical rules.

The rules are those of every manual of versification. The mute e counts before a consonant, but not before a vowel
(elision) or at the end of the verse. Two vowels that meet inside a word make one syllable (synaeresis) or two
(diaeresis), depending on the word. All is read from the spelling, old or modern, without a pronunciation dictionary.
"""

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

from mini_transformer.verse.lexicon import family, rewrite, words

VOWELS = "aàâäeéèêëiîïoôöuùûüyœæ"
_WORD = re.compile(r"([a-zà-öø-ÿœæ]+)(?:(['-])(?=[a-zà-öø-ÿœæ])|(\s*[^\w\s'-]|\s*--))?")
_NUCLEUS = re.compile(
    r"eau|œu|œi(?=l)|aoû|aou(?=[tl])|(?<=[fptl])ao(?=n)|eoi|[eœ]ui(?=ll|ls?$)|oui(?=ll|ls?$)|uei(?=l)"
    r"|[aâ][iîyu]|e[iîyuû]|o[iîyuùû]|uy|[" + VOWELS + "]"
)
# The mute e of oublierai, dévouement, gaieté.
_MUTE_E_INSIDE = re.compile(r"e[rmt][aeéioèu]")
# The open e after the i of fierté, siecle, assiette.
_OPEN_E = re.compile(r"e(?:r[bcdfglmnprstv]|[bcdfgptv][lr]|ll|tt)")


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
    if guë := re.fullmatch(r"(.*g)uë(s?)", word):  # aiguë: the u is sounded, the e is mute
        return guë[1] + "ü", "e" + guë[2]
    return word, ""


def _is_ent_sounded(word: str) -> bool:
    if word.endswith("ment"):
        return word[:-3] not in words("verbs_in_mer")
    if word.endswith(("vient", "tient")) and family("synaeresis_i").search(f"{word[:-4]}/ient"):
        return True
    # é before -ent rules out a verb, which would have è (ils cèdent).
    return word in words("sounded_ent") or bool(re.search(r"(?:é[bcdlnprstv]|esc)ent$", word))


@lru_cache(maxsize=200_000)
def word_readings(word: str, after_nous: bool = False) -> tuple[tuple[frozenset[int], str], ...]:
    """Possible syllable counts without the mute ending, and that ending: twice for *couvent* and the like.

    `after_nous` says that the verse has the pronoun *nous*, so that -ions may be the ending of a verb.
    """
    splits = [(word, ""), (word[:-3], "ent")] if word in words("either_ent") else [split_ending(word)]
    return tuple((_count(rewrite("respellings", stem), ending, after_nous), ending) for stem, ending in splits)


def _count(stem: str, ending: str, after_nous: bool) -> frozenset[int]:
    """The possible syllable counts of a stem."""
    if ending and stem.endswith("gu"):  # langue: the u is silent
        stem = stem.removesuffix("u")
    nuclei = [match.span() for match in _NUCLEUS.finditer(stem)]
    totals, index = {0}, 0
    while index < len(nuclei):
        start, end = nuclei[index]
        counts: set[int] | None = None
        touches_next = index + 1 < len(nuclei) and nuclei[index + 1][0] == end
        if index and nuclei[index - 1][1] == start and _MUTE_E_INSIDE.match(stem, start):
            vowel = stem[nuclei[index - 1][0] : start]
            counts = {1} if vowel in ("a", "o") else {0, 1} if vowel[-1] == "y" else {0}
        elif touches_next and not _MUTE_E_INSIDE.match(stem, end):
            counts = _count_pair(stem[:start], stem[start:end], stem[end:], ending, after_nous)
            index += counts is not None
        totals = {total + count for total in totals for count in counts or {1}}
        index += 1
    return frozenset(totals)


def _count_pair(before: str, first: str, after: str, ending: str, after_nous: bool) -> set[int] | None:
    """The syllables of two vowels that meet, or None if the first cannot be a glide."""
    if first in ("i", "y", "î"):
        return _count_i_pair(before, after, f"{before}/{first}{after}", ending, after_nous)
    if first == "ï":
        return {1} if before[-1:] in ("a", "o") else {2}
    if first not in ("u", "û", "ou", "o"):
        return None
    for name, counts in (("synaeresis_u", {1}), ("diaeresis_u", {2}), ("either_u", {1, 2})):
        if family(name).search(f"{before}/{first}{after}"):
            return counts
    return {1} if first in ("u", "û") and after[0] in "iîy" else {2}


def _count_i_pair(before: str, after: str, marked: str, ending: str, after_nous: bool) -> set[int]:
    if before[-1:] == "y":
        return {1}
    if family("either_i").search(marked):
        return {1, 2}
    if re.search(r"[bcdfgptv]h?[lr]$", before):
        return {2}
    if family("synaeresis_i").search(marked):
        return {1}
    verb_in_ier = family("verbs_in_ier").search(before)
    if after in ("er", "ez", "ers") or (after == "èr" and ending == "ent"):
        return {2} if verb_in_ier and after != "ers" else {1}
    if after[0] == "è" or _OPEN_E.match(after):
        return {2} if family("diaeresis_ie").search(marked) else {1}
    if after == "ons" and not verb_in_ier:
        if family("synaeresis_ions").search(before):
            return {1}
        return {1, 2} if after_nous and before[-1:] not in VOWELS else {2}
    return {2}


class Scansion(NamedTuple):
    """One way of scanning a verse: its number of syllables, and those (4, 5, 6) that a caesura may follow."""

    syllables: int
    caesurae: frozenset[int]


_IMPERFECT = re.compile(r"(?<!^v)(?<!^cr)(?<!rev)(?<!rév)[ao]ient$")


@lru_cache(maxsize=100_000)
def elides(word: str) -> frozenset[bool]:
    """Whether a mute e is elided before `word`; both answers where usage varies."""
    if word in words("either_elision"):
        return frozenset({True, False})
    return frozenset({word[0] in VOWELS + "h" and not family("no_elision").match(word)})


@lru_cache(maxsize=4096)
def scan(line: str) -> frozenset[Scansion]:
    """Every scansion of `line` that the rules allow; none if it has digits."""
    if any(character.isdigit() for character in line):
        return frozenset()
    texts = split_words(line)
    scansions = {Scansion(0, frozenset())}
    nous = any(text == "nous" for text, _ in texts)
    for index, (text, separator) in enumerate(texts):
        following = texts[index + 1][0] if index + 1 < len(texts) else None
        before, separator_before = texts[index - 1] if index else ("", "")
        enclitic = separator_before == "-"
        # A pronoun after its verb and "un" in l'un, pas un are stressed.
        stressed = enclitic or (text == "un" and (separator_before == "'" or before in ("pas", "quelqu")))
        additions = _additions(text, separator, following, enclitic, stressed, nous)
        scansions = {
            Scansion(total := count + added, caesurae | {total} if caesura and total in (4, 5, 6) else caesurae)
            for count, caesurae in scansions
            for added, caesura in additions
        }
    return frozenset(scansions)


@lru_cache(maxsize=400_000)
def _additions(
    text: str, separator: str, following: str | None, enclitic: bool, stressed: bool, nous: bool
) -> frozenset[tuple[int, bool]]:
    """What a word adds to a verse: pairs of a syllable count and whether a caesura may follow."""
    ends_stressed = separator == "," or (not separator and (stressed or text not in words("proclitics")))
    additions = set()
    for counts, ending in word_readings(text, nous and text.endswith("ions")):
        if enclitic and text in ("je", "ce"):
            counts, ending = frozenset({0}), "e"
        for mute in _count_mute_ending(text, ending, following, enclitic):
            additions |= {(count + mute, not mute and ends_stressed) for count in counts}
    return frozenset(additions)


def _count_mute_ending(word: str, ending: str, following: str | None, enclitic: bool) -> set[int]:
    """The syllables that the mute ending may add: 0, 1, or -1 for the e of an elided *le* (prends-le)."""
    if enclitic and word == "le" and following is not None and True in elides(following):
        return {0, -1}
    if not ending or following is None:
        return {0}
    if word == "encore":  # editions in modern spelling print encore where the verse has encor
        return {0} if elides(following) == {True} else {0, 1}
    if ending == "e":
        return {0 if elision else 1 for elision in elides(following)}
    # -aient, -oient never count; elsewhere -es and -ent count after a vowel, as in the oldest verse.
    return {0} if _IMPERFECT.search(word) else {1}


def syllable_counts(line: str) -> frozenset[int]:
    """The syllable counts that the rules allow for `line`: one, or several where usage varies (hier, ancien).

    None if the line has digits, which must be spelt out. A line without words has zero syllables.
    """
    return frozenset(scansion.syllables for scansion in scan(line))
