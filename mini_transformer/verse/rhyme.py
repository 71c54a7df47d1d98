"""The rhyme of a French verse, read from the spelling of its last word.

A rhyme is the sounds of a verse from its last stressed vowel on. It is feminine if a mute e follows that vowel
and masculine if not, and a feminine rhyme never rhymes with a masculine one. Silent final consonants (s, x, z, t,
d, p...) are ignored: a plural may rhyme with a singular, which the classical rules forbid.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from mini_transformer.verse.lexicon import family, irregular_rhymes, rewrite, words
from mini_transformer.verse.syllables import VOWELS, split_ending, split_words


@dataclass(frozen=True, slots=True)
class Rhyme:
    """A rhyme; `sounds` is one approximate ending, or several where the spelling does not decide (fois / avois)."""

    word: str
    feminine: bool
    sounds: frozenset[str]


# lexicon.toml says how sounds are written, and has the rules that find them.
_VOWEL_SOUNDS = "aeiouyéQUEAIOW"
_LAST_VOWEL = re.compile(rf"w?[{_VOWEL_SOUNDS}][^{_VOWEL_SOUNDS}@]*@?$")
_SILENT_END = re.compile(r"(?<=[aeiouyéèêâîôûùàïlrnmœ])(?:[sxztdp]|gs?|cts?|cs|bs?)+$")
# oi as the old spelling of ai: connoître, foible, roide, paroisse.
_OLD_OI = re.compile(r"o[iî](?=tr$|bl$|d$|ss$|s$)")


def _ending_sounds(spelling: str) -> str:
    """The sounds of a spelling from its last stressed vowel on."""
    sounds = rewrite("sounds", spelling)
    return match[0] if (match := _LAST_VOWEL.search(sounds)) else sounds


def _masculine_sounds(word: str) -> set[str]:
    bare = word.removesuffix("s")
    if bare.endswith("er"):
        # "er" lets mer rhyme with aimer: a rhyme for the eye, which old verse allows.
        return {"er", "Er" if bare in words("sounded_er") else "é"}
    if word.endswith(("ez", "ed", "eds")):
        return {"é"}
    if word.endswith("ai"):
        return {"é", "E"}
    old_spelling = re.search(r"oi[stx]?$|oid$", word) and word not in words("true_oi")
    if nasal := re.search(r"en[td]s?$", word):
        spelling = word[: nasal.start()] + ("en" if re.search(r"[vt]ients?$", word) else "an")
    else:  # without the silent final consonants, and with è for an open last e
        spelling = re.sub(r"e(?=[lrfck]?$)", "è", _SILENT_END.sub("", word))
    return {_ending_sounds(spelling), *(["E"] if old_spelling else [])}


@lru_cache(maxsize=100_000)
def _word_rhyme(word: str) -> tuple[bool, frozenset[str]]:
    """Whether the rhyme of a word is feminine, and its sounds."""
    stem, ending = split_ending(word)
    if ending and word.endswith(("aient", "oient")):  # masculine by convention; -oient is also old for -aient
        return False, frozenset({"E"} if word.endswith("aient") else {"E", "wa"})
    if irregular := irregular_rhymes().get(word) or irregular_rhymes().get(word.removesuffix("s")):
        return bool(ending), irregular
    if not ending:
        return False, frozenset(_masculine_sounds(word))
    if re.search(r"(?:[^aâeoiuœ]|qu)ill$", stem):
        return True, frozenset({"il@" if family("sounded_ill").search(stem) else "iJ@"})
    return True, frozenset({_ending_sounds(stem + "@"), _ending_sounds(_OLD_OI.sub("ai", stem) + "@")})


@lru_cache(maxsize=4096)
def rhyme(line: str) -> Rhyme | None:
    """The rhyme of a verse (or of one word); None if it has no word."""
    *before, (last, _) = split_words(line) or [("", "")]
    if not any(letter in VOWELS for letter in last):
        return None
    verb, separator = before[-1] if before else ("", ",")
    if separator == "-" and last in ("je", "ce"):  # dis-je, seroit-ce: the pronoun gives the verb a feminine ending
        bare, end = re.sub(r"[sxtdp]+$", "", verb) or verb, "j@" if last == "je" else "ss@"
        sounds = {_ending_sounds(bare + end), _ending_sounds(re.sub(r"oi$", "ai", bare) + end)}
        return Rhyme(f"{verb}-{last}", True, frozenset(sounds))
    if not separator and last in words("proclitics"):  # a proclitic is not stressed, so it cannot rhyme
        return Rhyme(last, False, frozenset())
    return Rhyme(last, *_word_rhyme(last))


def rhymes(a: str, b: str) -> bool:
    """Whether two verses (or words) rhyme: same gender, a sound in common, and not the same word."""
    first, second = rhyme(a), rhyme(b)
    if first is None or second is None or first.word == second.word:
        return False
    return first.feminine == second.feminine and not first.sounds.isdisjoint(second.sounds)
