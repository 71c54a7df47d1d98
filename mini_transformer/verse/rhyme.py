"""The rhyme of a French verse, read from the spelling of its last word.

A rhyme is the sounds of a verse from its last stressed vowel on. It is feminine if a mute e follows that vowel
and masculine if not, and a feminine rhyme never rhymes with a masculine one. Silent final consonants (s, x, z, t,
d, p...) are ignored: a plural may rhyme with a singular, which the classical rules forbid.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from mini_transformer.verse import lexicon
from mini_transformer.verse.syllables import PROCLITICS, VOWELS, split_ending, split_words


@dataclass(frozen=True, slots=True)
class Rhyme:
    """The rhyme of a verse: its last word, its gender and its sounds.

    `sounds` is one approximate phonetic ending, or several where the spelling does not decide (fois / avois).
    """

    word: str
    feminine: bool
    sounds: frozenset[str]


# How sounds are written: U ou, y u, E è, A an, I in, O on, W un, Q eu, S ch, Z j, N gn, J yod, @ mute e; all others
# as they are spelt. C and G are a soft c and a hard g while the rules are applied.
_VOWEL = "[aeiouyàâäéèêëîïôöùûüœUEAIOWQ]"
# After a nasal vowel there is neither a vowel nor a second n or m.
_NASAL = r"(?![nm@aeiouéèêâîôûyUEQ])"
_YOD = r"(?:ll(?=[@aeéiou])|l$)"
_TO_SOUNDS = [
    (re.compile(pattern), sound)
    for pattern, sound in [
        # Consonants.
        (r"(?<=[gc])ueil", "œil"),
        (r"ç", "C"),
        (r"sch|sh|ch(?=[aeéèêiouyâîôû@])|ch$", "S"),
        (r"ch", "k"),
        (r"ph", "f"),
        (r"(?<=[trg])h|^h", ""),
        (r"gn", "N"),
        (r"qu|q", "k"),
        (r"gu(?=[eiyéèêaâ@])", "G"),
        (r"ge(?=[aàâoô])|g(?=[eiyéèê@])", "Z"),
        (r"G", "g"),
        (r"j", "Z"),
        (r"sc(?=[eiyéèê@])|c(?=[eiyéèêœ@î])", "C"),
        (r"c", "k"),
        (r"mpt", "mt"),
        (r"(?<=[oa])mn(?=@)", "n"),
        (r"w", "v"),
        (r"x(?=@)", "ks"),
        (rf"(?<={_VOWEL})s(?={_VOWEL}|@)", "z"),
        (r"C", "s"),
        # Yod.
        (rf"(?:eu|œu|œ)i{_YOD}", "QJ"),
        (rf"oui{_YOD}", "UJ"),
        (rf"[aâ]i{_YOD}", "aJ"),
        (rf"ei{_YOD}", "EJ"),
        (r"uill(?=[@aeéou])", "yiJ"),
        (r"ill(?=[@aeéou])", "iJ"),
        (rf"oy(?={_VOWEL})", "waJ"),
        (rf"ay(?={_VOWEL})", "EJ"),
        # Vowels written with several letters, then nasal vowels, then single vowels.
        (r"eau|au|aô", "o"),
        (r"œu|eu|eû|œ", "Q"),
        (r"aoû|où|oû|ou", "U"),
        (r"oî|oy|oê", "oi"),
        (rf"oi[nm]{_NASAL}", "wI"),
        (rf"(?:ai|ei|aî)[nm]{_NASAL}|(?<=[iyéïJ])en(?=s?$|d)", "I"),
        (rf"(?:aon|aen|an|am|en|em){_NASAL}", "A"),
        (rf"(?:in|im|yn|ym|ïn){_NASAL}", "I"),
        (rf"(?:on|om){_NASAL}", "O"),
        (rf"(?:un|um){_NASAL}", "W"),
        (r"oi", "wa"),
        (r"ay|ey|ai|aî|ei|è|ê|ë", "E"),
        (r"y|î|ï", "i"),
        (r"u|û|ü", "y"),
        (r"â|à|ä", "a"),
        (r"ô|ö", "o"),
        (r"h", ""),
        (r"[eé](?=[^aeiouyQUEAIOWé@]+@)", "E"),
        (r"([^aeiouyéQUEAIOW])\1", r"\1"),
    ]
]
_VOWEL_SOUNDS = "aeiouyéQUEAIOW"
_LAST_VOWEL = re.compile(rf"w?[{_VOWEL_SOUNDS}][^{_VOWEL_SOUNDS}@]*@?$")
_SILENT_END = re.compile(r"(?<=[aeiouyéèêâîôûùàïlrnmœ])(?:[sxztdp]|gs?|cts?|cs|bs?)+$")
# oi as the old spelling of ai: connoître, foible, roide, paroisse.
_OLD_OI = re.compile(r"o[iî](?=tr$|bl$|d$|ss$|s$)")


def _ending_sounds(spelling: str) -> str:
    """The sounds of a spelling from its last stressed vowel on."""
    for pattern, sound in _TO_SOUNDS:
        spelling = pattern.sub(sound, spelling)
    match = _LAST_VOWEL.search(spelling)
    return match[0] if match else spelling


def _masculine_sounds(word: str) -> frozenset[str]:
    irregular = lexicon.IRREGULAR_MASCULINE.get(word) or lexicon.IRREGULAR_MASCULINE.get(word.removesuffix("s"))
    if irregular:
        return irregular
    if word.endswith(("er", "ers")):
        # "er" lets mer rhyme with aimer: a rhyme for the eye, which old verse allows.
        sounded = lexicon.SOUNDED_ER.fullmatch(word.removesuffix("s"))
        return frozenset({"Er", "er"} if sounded else {"é", "er"})
    if word.endswith(("ez", "ed", "eds")):
        return frozenset({"é"})
    if word.endswith("ai"):
        return frozenset({"é", "E"})
    found = {_ending_sounds(_without_silent_end(word))}
    if re.search(r"oi[stx]?$|oid$", word) and word not in lexicon.TRUE_OI:
        found.add("E")
    return frozenset(found)


def _without_silent_end(word: str) -> str:
    """The word without its silent final consonants, and with è for an open last e."""
    nasal = re.search(r"en[td]s?$", word)
    if nasal:
        return word[: nasal.start()] + ("en" if re.search(r"[vt]ients?$", word) else "an")
    return re.sub(r"e(?=[lrfck]?$)", "è", _SILENT_END.sub("", word))


def _feminine_sounds(word: str, stem: str) -> frozenset[str]:
    if word in lexicon.IRREGULAR_FEMININE:
        return frozenset({lexicon.IRREGULAR_FEMININE[word]})
    if word.endswith(("ë", "ës")):
        return frozenset({"y@"})
    if re.search(r"(?:[^aâeoiuœ]|qu)ill$", stem):
        return frozenset({"il@" if lexicon.SOUNDED_ILL.search(stem) else "iJ@"})
    return frozenset({_ending_sounds(stem + "@"), _ending_sounds(_OLD_OI.sub("ai", stem) + "@")})


@lru_cache(maxsize=100_000)
def _word_rhyme(word: str) -> tuple[bool, frozenset[str]]:
    """Whether the rhyme of a word is feminine, and its sounds."""
    stem, ending = split_ending(word)
    if not ending:
        return False, _masculine_sounds(word)
    if word.endswith(("aient", "oient")):  # masculine by convention; -oient is also the old spelling of -aient
        return False, frozenset({"E"} if word.endswith("aient") else {"E", "wa"})
    return True, _feminine_sounds(word, stem)


def _inversion_sounds(verb: str, pronoun: str) -> frozenset[str]:
    """The sounds of dis-je, seroit-ce: the pronoun gives the verb a feminine ending."""
    bare = re.sub(r"[sxtdp]+$", "", verb) or verb
    end = "j@" if pronoun == "je" else "ss@"
    return frozenset({_ending_sounds(bare + end), _ending_sounds(re.sub(r"oi$", "ai", bare) + end)})


@lru_cache(maxsize=4096)
def rhyme(line: str) -> Rhyme | None:
    """The rhyme of a verse (or of one word); None if it has no word."""
    words = split_words(line)
    if not words or not any(letter in VOWELS for letter in words[-1][0]):
        return None
    last = words[-1][0]
    if len(words) > 1 and words[-2][1] == "-" and last in ("je", "ce"):
        verb = words[-2][0]
        return Rhyme(f"{verb}-{last}", True, _inversion_sounds(verb, last))
    if last in PROCLITICS and len(words) > 1 and not words[-2][1]:
        # A proclitic is not stressed, so it cannot rhyme.
        return Rhyme(last, False, frozenset())
    return Rhyme(last, *_word_rhyme(last))


def rhymes(a: str, b: str) -> bool:
    """Whether two verses (or words) rhyme: same gender, a sound in common, and not the same word."""
    first, second = rhyme(a), rhyme(b)
    if first is None or second is None or first.word == second.word:
        return False
    return first.feminine == second.feminine and not first.sounds.isdisjoint(second.sounds)
