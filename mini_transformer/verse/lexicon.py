"""The lists of `lexicon.toml`: words, families of words, and rules of spelling. A list is read when first asked for."""

import re
import tomllib
from functools import cache
from importlib import resources
from typing import Any


@cache
def _lists() -> dict[str, Any]:
    return tomllib.loads((resources.files("mini_transformer.verse") / "lexicon.toml").read_text(encoding="utf-8"))


@cache
def words(name: str) -> frozenset[str]:
    """A list of words."""
    return frozenset(_lists()[name].split())


@cache
def family(name: str) -> re.Pattern[str]:
    """A list of patterns, as one that matches where any of them does."""
    return re.compile("|".join(_lists()[name].split()))


@cache
def irregular_rhymes() -> dict[str, frozenset[str]]:
    """The sounds of words that do not rhyme as they are spelt."""
    entries = (entry.split(":") for entry in _lists()["irregular_rhymes"].split())
    return {word: frozenset(sounds.split("/")) for word, sounds in entries}


@cache
def _rules(name: str) -> list[tuple[re.Pattern[str], str]]:
    classes = _lists()["classes"]
    return [(re.compile(pattern.format_map(classes)), replacement) for pattern, replacement in _lists()[name]]


def rewrite(name: str, spelling: str) -> str:
    """`spelling` after a list of rules, applied one after the other."""
    for pattern, replacement in _rules(name):
        spelling = pattern.sub(replacement, spelling)
    return spelling
