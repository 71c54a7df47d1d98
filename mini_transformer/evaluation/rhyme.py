"""The rhyme of a French verse, read from the spelling of its last word.

A rhyme is what is heard from the last stressed vowel on. It is feminine when a mute e follows that vowel,
masculine otherwise, and the two never rhyme together. The final consonants that are not heard (s, x, z, t,
d, p...) do not count; the classical rule that a plural does not rhyme with a singular is not applied.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from mini_transformer.evaluation import lexicon
from mini_transformer.evaluation.syllables import VOWELS, split_ending, tokens


@dataclass(frozen=True, slots=True)
class Rhyme:
    """The end of a verse: the word, its gender and the sounds it may be heard as.

    `sounds` holds one coarse phonetic ending, or several where spelling does not decide (fois / avois).
    """

    word: str
    feminine: bool
    sounds: frozenset[str]


# From spelling to sounds, in this order. Capitals: U ou, E è, A an, I in, O on, W un, S ch, Z j, N gn, J yod, Q eu.
_V = "[aeiouyàâäéèêëîïôöùûüœæUEAIOWQ]"
_TO_SOUNDS = [
    (re.compile(pattern), sound)
    for pattern, sound in [
        (r"ç", "s"),
        (r"sch|ch(?=[aeéèêiouyâîôû])|sh", "S"),
        (r"ch$", "S"),
        (r"ch", "k"),
        (r"ph", "f"),
        (r"(?<=[trg])h|^h", ""),
        (r"gn", "N"),
        (r"qu|q|k", "k"),
        (r"gu(?=[eiyéèêaâ@])", "G"),
        (r"ge?(?=[aàâoô])", lambda match: "Z" if match[0] == "ge" else "G"),
        (r"g(?=[eiyéèê@])", "Z"),
        (r"G", "g"),
        (r"j", "Z"),
        (r"sc(?=[eiyéèê])", "s"),
        (r"c(?=[eiyéèê@î])", "s"),
        (r"c", "k"),
        (r"w", "v"),
        (r"x(?=@)", "ks"),
        (r"(?<=[tsn])t(?=i(?:on|eu|en))", "t"),
        (r"(?<=" + _V + r")s(?=" + _V + r"|@)", "z"),
        # Yod.
        (r"(?:eui|œui|uei|œi)l(?:l(?=[@aeéiou])|$)", "QJ"),
        (r"oui(?:ll(?=[@aeéiou])|l$)", "UJ"),
        (r"ai(?:ll(?=[@aeéiou])|l$)", "aJ"),
        (r"ei(?:ll(?=[@aeéiou])|l$)", "EJ"),
        (r"(?<!u)ill(?=[@aeéou])", "iJ"),
        (r"uill(?=[@aeéou])", "yiJ"),
        # Vowels written with several letters.
        (r"eau|au|aô", "o"),
        (r"œu|eu|eû|œ", "Q"),
        (r"aoû|où|oû|ou", "U"),
        (r"oî|oy|oê", "oi"),
        # Nasal vowels: n or m before a consonant or at the end.
        (r"oi[nm](?![nm@aeiouéèêâîôûyUEQ])", "wI"),
        (r"(?:ai|ei|aî)[nm](?![nm@aeiouéèêâîôûyUEQ])", "I"),
        (r"(?<=[iyéï])en(?=s?$|[ds]|t$)(?!t?$x)", "I"),
        (r"(?:aon|aen|an|am|en|em)(?![nm@aeiouéèêâîôûyUEQ])", "A"),
        (r"(?:in|im|yn|ym|ïn)(?![nm@aeiouéèêâîôûyUEQ])", "I"),
        (r"(?:on|om)(?![nm@aeiouéèêâîôûyUEQ])", "O"),
        (r"(?:un|um)(?![nm@aeiouéèêâîôûyUEQ])", "W"),
        (r"oi", "wa"),
        (r"ay|ey|ai|aî|ei|è|ê|ë", "E"),
        (r"u|û|ü", "Y"),
        (r"y|î|ï", "i"),
        (r"â|à|ä", "a"),
        (r"ô|ö", "o"),
        (r"Y", "y"),
        (r"U", "U"),
        (r"h", ""),
        (r"e(?=[^aeiouyQUEAIOWé@]+@)", "E"),
        (r"é(?=[^aeiouyQUEAIOWé@]+@)", "E"),
        (r"(.)\1", r"\1"),
    ]
]
_SOUNDED_VOWEL = "aeiouyéQUEAIOW"
_LAST = re.compile(rf"w?[{_SOUNDED_VOWEL}][^{_SOUNDED_VOWEL}@]*@?$")

_SILENT_END = re.compile(r"(?:(?<=[aeiouyéèêâîôûùàïlrnmœ])(?:[sxztdp]|[tdpc]s|ps|pt|gs?|cts?|bs?|mps?)+)$")


def _masculine(word: str) -> frozenset[str]:
    """The sounds of a word without mute ending."""
    if word in lexicon.SPECIAL_SOUNDS:
        return lexicon.SPECIAL_SOUNDS[word]
    if re.search(r"(?:[^aeo]u|[^u])?(?:er|ers)$", word) and not word.endswith(("œers",)):
        bare = word.removesuffix("s")
        if lexicon.SOUNDED_ER.fullmatch(bare):
            return frozenset({"Er", "er"})
        return frozenset({"é", "er"}) if word.endswith("er") else frozenset({"é", "er", "Er"})
    if word.endswith(("ez", "ed", "eds")):
        return frozenset({"é"})
    if word.endswith("ai"):
        return frozenset({"é", "E"})
    found = {_sounds(word, frozenset())}
    if re.search(r"oi[stx]?$|oient$|oid$", word) and word not in lexicon.TRUE_OI:
        found.add("E")
    return frozenset(found)


def _sounds(word: str, _: frozenset[str]) -> str:
    stripped = word
    if not re.search(r"en[td]s?$", word):
        stripped = _SILENT_END.sub("", word) or word
    else:
        stripped = re.sub(r"en[td]s?$", "an" if not re.search(r"[vt]ients?$", word) else "en", word)
    stripped = re.sub(r"e(?=[lrfckq]$)", "E", stripped)
    if stripped.endswith("e") or (stripped != word and re.search(r"e$", stripped)):
        stripped = stripped[:-1] + "E"
    return _key(stripped)


def _key(spelling: str) -> str:
    for pattern, sound in _TO_SOUNDS:
        spelling = pattern.sub(sound, spelling)
    match = _LAST.search(spelling)
    return match[0] if match else spelling


@lru_cache(maxsize=100_000)
def _word_rhyme(word: str) -> tuple[bool, frozenset[str]]:
    stem, ending = split_ending(word)
    if not ending:
        return False, _masculine(word)
    if word.endswith(("oient", "aient")):
        # Verbs in -aient are masculine rhymes by tradition.
        return False, frozenset({"E"}) if word.endswith("aient") else frozenset({"E", "wa"})
    sounds = {_key(stem + "@")}
    if re.search(r"[^aeoiuœ]ill$", stem):
        sounds = {"il@"} if lexicon.HARD_ILL.search(stem) else {"iJ@"}
    if re.search(r"oi(?:tr|bl|d|ss|s)$|oîtr$", stem):
        sounds.add(_key(re.sub(r"oi|oî", "ai", stem) + "@"))
    return True, frozenset(sounds)


@lru_cache(maxsize=4096)
def rhyme(line: str) -> Rhyme | None:
    """The rhyme of a verse (or of one word); None where there is no word."""
    words = tokens(line)
    if not words or not any(letter in VOWELS for letter in words[-1][0]):
        return None
    last = words[-1][0]
    if len(words) > 1 and words[-2][1] == "-" and last in ("je", "ce"):
        # dis-je, est-ce: the pronoun leans on the verb and gives it a feminine ending.
        verb = re.sub(r"[sxtdp]+$", "", words[-2][0]) or words[-2][0]
        verb = verb[:-1] + "é" if verb.endswith("e") and last == "je" else verb
        return Rhyme(f"{words[-2][0]}-{last}", True, frozenset({_key(verb + ("j" if last == "je" else "ss") + "@")}))
    feminine, sounds = _word_rhyme(last)
    return Rhyme(last, feminine, sounds)


def rhymes(a: str, b: str) -> bool:
    """Whether two verses (or two words) rhyme: same gender, same sounds, two different words."""
    first, second = rhyme(a), rhyme(b)
    if first is None or second is None:
        return False
    return first.feminine == second.feminine and first.word != second.word and bool(first.sounds & second.sounds)
