"""The one exception that is written for people, and a hint for words that are nearly right."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave is wrong: one line that says what, where and what to do; exit code 2.

    Settings are named in backticks, as in Python; the command line shows their flags instead.
    """


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """What follows an unknown word: the nearest known one, if one is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else otherwise
