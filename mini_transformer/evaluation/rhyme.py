"""The rhyme of a French verse, read from the spelling of its last word.

A rhyme is what is heard from the last stressed vowel on. It is feminine when a mute e follows that vowel,
masculine otherwise, and the two never rhyme together. The final consonants that are not heard (s, x, z, t,
d, p...) do not count; the classical rule that a plural does not rhyme with a singular is not applied.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from mini_transformer.evaluation import lexicon
from mini_transformer.evaluation.syllables import VOWELS, WEAK, split_ending, tokens


@dataclass(frozen=True, slots=True)
class Rhyme:
    """The end of a verse: the word, its gender and the sounds it may be heard as.

    `sounds` holds one coarse phonetic ending, or several where spelling does not decide (fois / avois).
    """

    word: str
    feminine: bool
    sounds: frozenset[str]


# Sounds, in capitals where the letter is borrowed: U ou, E è, A an, I in, O on, W un, Q eu, S ch, Z j, N gn,
# J yod, @ mute e. C and G stand for a soft c and a hard g while the rules run.
_V = "[aeiouyàâäéèêëîïôöùûüœUEAIOWQ]"
# What follows a nasal vowel: neither a vowel nor a second n or m.
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
        (rf"(?<={_V})s(?={_V}|@)", "z"),
        (r"C", "s"),
        # Yod.
        (rf"(?:eu|œu|œ)i{_YOD}", "QJ"),
        (rf"oui{_YOD}", "UJ"),
        (rf"[aâ]i{_YOD}", "aJ"),
        (rf"ei{_YOD}", "EJ"),
        (r"uill(?=[@aeéou])", "yiJ"),
        (r"ill(?=[@aeéou])", "iJ"),
        (rf"oy(?={_V})", "waJ"),
        (rf"ay(?={_V})", "EJ"),
        # Vowels of several letters, then nasal vowels, then the others.
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
_SOUNDED = "aeiouyéQUEAIOW"
_LAST = re.compile(rf"w?[{_SOUNDED}][^{_SOUNDED}@]*@?$")
_SILENT_END = re.compile(r"(?<=[aeiouyéèêâîôûùàïlrnmœ])(?:[sxztdp]|gs?|cts?|cs|bs?)+$")
# The oi that old spelling has for ai: avoit, connoître, foible, roide, paroisse.
_OLD_OI = re.compile(r"o[iî](?=tr$|bl$|d$|ss$|s$)")


def _key(spelling: str) -> str:
    """The sounds from the last stressed vowel on."""
    for pattern, sound in _TO_SOUNDS:
        spelling = pattern.sub(sound, spelling)
    match = _LAST.search(spelling)
    return match[0] if match else spelling


def _masculine(word: str) -> frozenset[str]:
    special = lexicon.SPECIAL_SOUNDS.get(word) or lexicon.SPECIAL_SOUNDS.get(word.removesuffix("s"))
    if special:
        return special
    if word.endswith(("er", "ers")):
        # "er" is the rhyme for the eye that old verse allows: mer, aimer.
        sounded = lexicon.SOUNDED_ER.fullmatch(word.removesuffix("s"))
        return frozenset({"Er", "er"} if sounded else {"é", "er"})
    if word.endswith(("ez", "ed", "eds")):
        return frozenset({"é"})
    if word.endswith("ai"):
        return frozenset({"é", "E"})
    found = {_key(_without_silent_end(word))}
    if re.search(r"oi[stx]?$|oid$", word) and word not in lexicon.TRUE_OI:
        found.add("E")
    return frozenset(found)


def _without_silent_end(word: str) -> str:
    """The word without its silent consonants, and with è where its last e is open."""
    nasal = re.search(r"en[td]s?$", word)
    if nasal:
        return word[: nasal.start()] + ("en" if re.search(r"[vt]ients?$", word) else "an")
    bare = _SILENT_END.sub("", word)
    return re.sub(r"e(?=[lrfck]?$)", "è", bare)


def _feminine(word: str, stem: str) -> frozenset[str]:
    if word in lexicon.SPECIAL_FEMININE:
        return frozenset({lexicon.SPECIAL_FEMININE[word]})
    if word.endswith(("ë", "ës")):
        return frozenset({"y@"})
    if re.search(r"(?:[^aâeoiuœ]|qu)ill$", stem):
        return frozenset({"il@" if lexicon.HARD_ILL.search(stem) else "iJ@"})
    return frozenset({_key(stem + "@"), _key(_OLD_OI.sub("ai", stem) + "@")})


@lru_cache(maxsize=100_000)
def _word_rhyme(word: str) -> tuple[bool, frozenset[str]]:
    stem, ending = split_ending(word)
    if not ending:
        return False, _masculine(word)
    if word.endswith("aient"):
        # By tradition a masculine rhyme, like -oient of old spelling.
        return False, frozenset({"E"})
    if word.endswith("oient"):
        return False, frozenset({"E", "wa"})
    return True, _feminine(word, stem)


def _leaning(verb: str, pronoun: str) -> frozenset[str]:
    """The rhyme of dis-je, seroit-ce: the pronoun gives its verb a feminine ending."""
    bare = re.sub(r"[sxtdp]+$", "", verb) or verb
    end = "j@" if pronoun == "je" else "ss@"
    return frozenset({_key(bare + end), _key(re.sub(r"oi$", "ai", bare) + end)})


@lru_cache(maxsize=4096)
def rhyme(line: str) -> Rhyme | None:
    """The rhyme of a verse (or of one word); None where there is no word."""
    words = tokens(line)
    if not words or not any(letter in VOWELS for letter in words[-1][0]):
        return None
    last = words[-1][0]
    if len(words) > 1 and words[-2][1] == "-" and last in ("je", "ce"):
        verb = words[-2][0]
        return Rhyme(f"{verb}-{last}", True, _leaning(verb, last))
    if last in WEAK and len(words) > 1 and not words[-2][1]:
        # An article or a preposition has no stress to rhyme with.
        return Rhyme(last, False, frozenset())
    return Rhyme(last, *_word_rhyme(last))


def rhymes(a: str, b: str) -> bool:
    """Whether two verses (or two words) rhyme: same gender, same sounds, two different words."""
    first, second = rhyme(a), rhyme(b)
    if first is None or second is None or first.word == second.word:
        return False
    return first.feminine == second.feminine and not first.sounds.isdisjoint(second.sounds)
