"""What a sample must be to be kept. Each check gives the reason for a drop in a word, or nothing.

Nothing here judges beauty: the checks catch what is plainly not the text that was asked for. What they miss and what
they drop wrongly is measured on a labelled set (tests/synthesis).
"""

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mini_transformer.data.words import shared_run, words
from mini_transformer.errors import UserError
from mini_transformer.synthesis.prompts import Kind

CUT, EMPTY, DUPLICATE, NEAR, QUOTE = "cut", "empty", "duplicate", "near-duplicate", "quote"

_REFUSAL_ANYWHERE = re.compile(
    r"\ben tant qu(?:e |')(?:modèle|assistant|intelligence artificielle|ia\b)|\bmodèle de langage\b|\bas an ai\b"
    r"|\blanguage model\b|\bmes directives\b|\bopenai\b|\bqwen\b|\balibaba cloud\b"
    r"|\bcontenu (?:inapproprié|offensant)\b",
    re.IGNORECASE,
)
_REFUSAL_START = re.compile(
    r"\A\W*(?:je (?:suis|reste) (?:désolée?|navrée?),? (?:mais|de ne)|désolée?,"
    r"|(?:je regrette|excusez-moi), mais|i'm sorry|i am sorry"
    r"|i can(?:no|')t|malheureusement,? je ne|je ne comprends pas (?:votre|la) (?:demande|question)"
    r"|je ne (?:peux|puis|suis) pas (?:en mesure|écrire|vous|répondre|créer|générer)"
    r"|il m'est impossible)",
    re.IGNORECASE,
)
# What a model says about its text, or leaves to be filled in; and markup that the cleaning could not undo.
_CHATTER = re.compile(
    r"\bn'hésite[zs]? pas à (?:me|demander|modifier)|\bj'espère que (?:ce|cette|vous|cela)\b.{0,60}\b(?:plai|convien)"
    r"|\b(?:voici|voilà) (?:une?|le|la|votre|ton) (?:autre )?(?:fable|poème|conte|dialogue|moralité|texte|version)\b"
    r"|\bnote *(?:de l'auteur|du traducteur)?(?<!\w) *: |\[[^\]\n]{2,60}\]|\bnombre de (?:mots|vers|syllabes)\b"
    r"|\b(?:le|ce) (?:poème|texte) (?:suit|respecte|utilise|comporte|ci-dessus)\b"
    r"|\brimes? (?:plates|croisées|embrassées)\b|\boctosyllabes?\b|\balexandrins?\b.{0,40}\brim|\bdécasyllabes?\b"
    r"|```|\*\*|^#{1,6} |^\|.*\|$|^ *\d+[.)] .*\n+ *\d+[.)] |</?[a-z]+>|\bhttps?://|\blorem ipsum\b|\\n",
    re.IGNORECASE | re.MULTILINE,
)
_SAYING = re.compile(r"^\s*(?:[—–-]|«|[^\n:.]{2,40}(?: ?:|\.) ?[«—A-ZÀ-Ý])", re.MULTILINE)
_LATIN_OK = 0.995  # share of letters that must be Latin


@dataclass(frozen=True)
class Candidate:
    """A cleaned text, with what was asked for."""

    text: str
    kind: Kind
    language: str
    finished: bool

    @property
    def lines(self) -> list[str]:
        """The lines that are not blank."""
        return [line for line in self.text.split("\n") if line.strip()]


def cut(c: Candidate) -> str | None:
    """Not ended by the model itself but cut off, as at --max-new-tokens."""
    return None if c.finished else CUT


def length(c: Candidate) -> str | None:
    """Fewer or more words than the kind of text has."""
    count, (fewest, most) = len(c.text.split()), c.kind.words
    return "too short" if count < fewest else "too long" if count > most else None


def refusal(c: Candidate) -> str | None:
    """The model excuses itself or speaks of itself."""
    found = _REFUSAL_START.search(c.text) or _REFUSAL_ANYWHERE.search(c.text)
    return "refusal" if found else None


def chatter(c: Candidate) -> str | None:
    """Talk about the text, places left to fill in, or markup."""
    return "chatter" if _CHATTER.search(c.text) else None


def language(c: Candidate) -> str | None:
    """Another language, as a whole or in a part of the text, or letters of another script."""
    letters = [char for char in c.text if char.isalpha()]
    latin = sum(unicodedata.name(char, "").startswith("LATIN") for char in letters)
    if c.language in _LATIN and latin < _LATIN_OK * len(letters):
        return "language"
    parts = [c.text, *_stretches(c.text, 200)]
    return "language" if any(_language_of(part) != c.language for part in parts) else None


def repetition(c: Candidate) -> str | None:
    """Lines or phrases that come again and again."""
    lines = [" ".join(words(line)) for line in c.lines]
    counts = Counter(line for line in lines if len(line) > 10)
    if sum(n - 1 for n in counts.values()) > max(2, len(lines) // 4) or max(counts.values(), default=0) > 4:
        return "repetition"
    found = words(c.text)
    if len(found) >= 40:
        runs = Counter(zip(found, found[1:], found[2:], found[3:], strict=False))
        if sum(n - 1 for n in runs.values()) > 0.2 * len(found):
            return "repetition"
    if re.search(r"\b(\w+)(?:\W+\1\b){3,}|([^\s.…])\2{7,}", c.text, re.IGNORECASE):
        return "repetition"
    data = c.text.encode()
    return "repetition" if len(data) > 400 and len(zlib.compress(data, 9)) < 0.3 * len(data) else None


def form(c: Candidate) -> str | None:
    """Prose where verse was asked for, or the other way round; a dialogue in which nobody speaks."""
    lines = c.lines
    short = sum(len(line.split()) <= 14 and len(line) <= 80 for line in lines) / max(1, len(lines))
    if c.kind.form == "verse":
        return None if len(lines) >= 4 and short >= 0.85 else "no verse"
    if c.kind.form == "dialogue":
        return None if len(_SAYING.findall(c.text)) >= 4 else "no dialogue"
    long = [line for line in lines if len(line) > 120]
    return None if sum(map(len, long)) >= 0.4 * len(c.text) else "no prose"


def ending(c: Candidate) -> str | None:
    """A last line that stops in the middle of a sentence."""
    return None if re.search(r"[.!?…»\"”)—]\s*\Z", c.text) else "unfinished"


CHECKS: dict[str, Callable[[Candidate], str | None]] = {
    "cut": cut,
    "refusal": refusal,  # before the length: an excuse is short, too
    "length": length,
    "chatter": chatter,
    "language": language,
    "repetition": repetition,
    "verse": form,
    "ending": ending,
}
NEIGHBOURS = ("duplicates", "quotes")  # the filters that look at other texts too
_LATIN = {"fr", "en", "de", "es", "it", "pt", "nl", "ca", "ro", "pl", "sv", "da", "no", "fi", "cs", "hu"}


def choose(wanted: str) -> tuple[str, ...]:
    """The filters that `--filters` names. Raises `UserError` for one that does not exist."""
    names = (*CHECKS, *NEIGHBOURS)
    if wanted in ("all", "none"):
        return names if wanted == "all" else ()
    chosen = [name.strip() for name in wanted.split(",")]
    for name in chosen:
        if name not in names:
            raise UserError(f"--filters: {name!r} is not one; there are all, none, and {', '.join(names)}")
    return tuple(name for name in names if name in chosen)


def judge(candidate: Candidate, chosen: Sequence[str]) -> str | None:
    """The reason to drop a text, or None: the first check that objects speaks."""
    if not candidate.text.strip():
        return EMPTY if candidate.finished else CUT  # such as a thought without an end
    return next((reason for name in chosen if name in CHECKS and (reason := CHECKS[name](candidate))), None)


def quotes(text: str, avoided: set[str]) -> str | None:
    """The reason to drop a text that shares a run of eight words with those to avoid."""
    return QUOTE if shared_run(text, avoided) else None


def _stretches(text: str, least: int) -> list[str]:
    """The text in paragraphs or lines, joined until each stretch has `least` characters; a short rest is left out."""
    out, current = [], ""
    for line in text.split("\n"):
        current += line + "\n"
        if len(current) >= least:
            out.append(current)
            current = ""
    return out


@cache
def _identifier() -> Any:
    import py3langid

    return py3langid


def _language_of(text: str) -> str:
    return str(_identifier().classify(text.lower())[0])
