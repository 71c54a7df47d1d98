"""What a sample must be to be kept. Each check gives the reason to reject it in a word, or nothing.

Nothing here judges beauty: the checks catch what is plainly not the text that was asked for. What they miss and what
they reject wrongly is measured on labelled sets (tests/synthesis).
"""

import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mini_transformer.data.ngrams import run_hashes, word_runs, words
from mini_transformer.errors import UserError
from mini_transformer.synthesis.cleaning import PATTERNS, clean, plain
from mini_transformer.synthesis.prompts import Kind

TRUNCATED, EMPTY, QUOTE = "truncated", "empty", "quote"

NEAR = 0.5  # share of common runs (Jaccard) from which two texts are nearly the same
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


def length(c: Candidate) -> str | None:
    """Fewer or more words than the kind of text has."""
    count, (fewest, most) = len(c.text.split()), c.kind.words
    return "too short" if count < fewest else "too long" if count > most else None


def language(c: Candidate) -> str | None:
    """Another language, as a whole or in a part of the text, or letters of another script."""
    from py3langid import classify  # takes a moment to load, and only this filter needs it

    letters = [char for char in c.text if char.isalpha()]
    latin = sum(unicodedata.name(char, "").startswith("LATIN") for char in letters)
    if c.language in _LATIN and latin < _LATIN_OK * len(letters):
        return "language"
    parts = [""]  # paragraphs or lines, joined until each part has 200 characters; a short rest is left out
    for line in c.text.split("\n"):
        parts[-1] += line + "\n"
        if len(parts[-1]) >= 200:
            parts.append("")
    parts[-1] = c.text
    return "language" if any(classify(part.lower())[0] != c.language for part in parts) else None


def repetition(c: Candidate) -> str | None:
    """Lines or phrases that come again and again."""
    found, data = words(c.text), c.text.encode()
    lines = Counter(line for line in (" ".join(words(line)) for line in c.lines) if len(line) > 10)
    runs = Counter(zip(found, found[1:], found[2:], found[3:], strict=False))
    again = (
        lines.total() - len(lines) > max(2, len(c.lines) // 4)
        or max(lines.values(), default=0) > 4
        or (len(found) >= 40 and runs.total() - len(runs) > 0.2 * len(found))
        or PATTERNS["stutter"].search(c.text)
        or (len(data) > 400 and len(zlib.compress(data, 9)) < 0.3 * len(data))
    )
    return "repetition" if again else None


def form(c: Candidate) -> str | None:
    """Prose where verse was asked for, or the other way round; a dialogue in which nobody speaks."""
    short = [line for line in c.lines if len(line.split()) <= 14 and len(line) <= 80]
    fits = {
        "verse": len(c.lines) >= 4 and len(short) >= 0.85 * len(c.lines),
        "dialogue": len(PATTERNS["saying"].findall(c.text)) >= 4,
        "prose": sum(len(line) for line in c.lines if len(line) > 120) >= 0.4 * len(c.text),
    }
    return None if fits[c.kind.form] else f"no {c.kind.form}"


CHECKS: dict[str, Callable[[Candidate], str | None]] = {
    "truncated": lambda c: None if c.finished else TRUNCATED,  # not ended by the model, as at `max_new_tokens`
    "refusal": lambda c: "refusal" if PATTERNS["refusal"].search(c.text) else None,
    "length": length,  # after refusals, which are short, too
    "boilerplate": lambda c: "boilerplate" if PATTERNS["boilerplate"].search(c.text) else None,
    "language": language,
    "repetition": repetition,
    "verse": form,
    "ending": lambda c: None if PATTERNS["ending"].search(c.text) else "unfinished",
}
OTHER_TEXTS = ("duplicates", "quotes")  # the filters that compare with other texts
_LATIN = {"fr", "en", "de", "es", "it", "pt", "nl", "ca", "ro", "pl", "sv", "da", "no", "fi", "cs", "hu"}


def choose(wanted: str) -> tuple[str, ...]:
    """The filters that the setting names. Raises `UserError` for one that does not exist."""
    names = (*CHECKS, *OTHER_TEXTS)
    chosen = {"all": names, "none": ()}.get(wanted, [name.strip() for name in wanted.split(",")])
    if unknown := [name for name in chosen if name not in names]:
        raise UserError(f"`filters`: {unknown[0]!r} is not one; there are all, none, and {', '.join(names)}")
    return tuple(name for name in names if name in chosen)


class Deduplicator:
    """The texts that were kept, to find those that come again: MinHash over runs of three words (`datasketch`)."""

    def __init__(self) -> None:
        from datasketch import MinHash, MinHashLSH  # takes a moment to load, and only this filter needs it

        self._exact: set[tuple[str, ...]] = set()
        self._near = MinHashLSH(threshold=NEAR, num_perm=128)
        self._hashes: list[MinHash] = []
        self._hash = partial(MinHash, num_perm=128, seed=1)

    def add(self, text: str) -> str | None:
        """Remember a text, or give the reason to reject it: it was there before, or one much like it."""
        found = tuple(words(text))
        if found in self._exact:
            return "duplicate"
        hashed = self._hash()
        hashed.update_batch([run.encode() for run in sorted(word_runs(text, 3) or {" ".join(found)})])
        # The index gives candidates; their hashes tell how alike they are.
        if any(hashed.jaccard(self._hashes[place]) >= NEAR for place in self._near.query(hashed)):
            return "near-duplicate"
        self._near.insert(len(self._hashes), hashed)
        self._hashes.append(hashed)
        self._exact.add(found)
        return None


class FilterPipeline:
    """Cleans answers, and gives the reason to reject one. It remembers what it let pass, for the duplicates."""

    def __init__(self, chosen: Sequence[str], language: str, avoid: Sequence[str], kept: Iterable[str] = ()) -> None:
        """`avoid`: texts that no sample may quote; `kept`: the texts of an earlier call."""
        self._chosen, self._language, self._avoided = chosen, language, run_hashes(avoid)
        self.deduplicate: Callable[[str], str | None] = lambda text: None
        if "duplicates" in chosen:
            self.deduplicate = Deduplicator().add
            for text in kept:
                self.deduplicate(text)

    def __call__(self, answer: str, kind: Kind, finished: bool) -> tuple[str, str | None]:
        """The text, and the reason to reject it or None. Without any filter, only what is no document is rejected."""
        text = clean(answer) if self._chosen else plain(answer)
        reason = check(Candidate(text, kind, self._language, finished), self._chosen)
        if reason is None and "quotes" in self._chosen and np.isin(run_hashes([text]), self._avoided).any():
            reason = QUOTE
        return text, reason or self.deduplicate(text)


def check(candidate: Candidate, chosen: Sequence[str]) -> str | None:
    """The reason to reject a text by itself, or None: that of the first check that objects."""
    if not candidate.text.strip():
        return EMPTY if candidate.finished else TRUNCATED  # such as a thought without an end
    return next((reason for name in chosen if name in CHECKS and (reason := CHECKS[name](candidate))), None)
