"""Runs of words: what it means that one text quotes another. (`overlap` counts them in texts of any size.)"""

import re
import unicodedata
from collections.abc import Iterable

RUN = 8  # words: shorter runs coincide by chance, longer ones are a quotation
_WORD = re.compile(r"[^\W\d_]+")  # letters of any script


def words(text: str) -> list[str]:
    """The words of a text in lower case; everything but letters parts them, so that layout does not count."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def word_runs(text: str, length: int = RUN) -> set[str]:
    """All runs of `length` words of a text, joined by spaces."""
    found = words(text)
    return {" ".join(found[i : i + length]) for i in range(len(found) - length + 1)}


def all_word_runs(texts: Iterable[str], length: int = RUN) -> set[str]:
    """The runs of several texts; none reaches from one text into the next."""
    return set().union(*(word_runs(text, length) for text in texts))


def shared_run(text: str, runs: set[str], length: int = RUN) -> str | None:
    """The first run of `text` that is among `runs`, or None."""
    found = words(text)
    candidates = (" ".join(found[i : i + length]) for i in range(len(found) - length + 1))
    return next((run for run in candidates if run in runs), None)
