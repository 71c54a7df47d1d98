"""Prompts: sample number k has its own, a pure function of the recipe, the seed and k.

A recipe (TOML) has kinds of text and lists of slots to fill their prompts with. Every kind comes up equally often (or
by its `share`), every value of a slot equally often too, and no combination comes back until all have been used.
"""

import hashlib
import math
import random
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mini_transformer.data.decoding import read_text
from mini_transformer.errors import UserError

FORMS = ("verse", "prose", "dialogue")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True)
class Kind:
    """One kind of text: how it is asked for, and what it must look like."""

    name: str
    form: str  # one of FORMS
    words: tuple[int, int]  # fewest and most
    share: int
    prompt: str
    slots: tuple[str, ...]  # the placeholders of its prompt


@dataclass(frozen=True)
class Prompt:
    """What is asked of the model for one sample."""

    number: int
    kind: Kind
    slots: dict[str, str]
    system: str
    text: str


@dataclass(frozen=True)
class Recipe:
    """Kinds and slots. `load` reads one; `prompt` draws from it."""

    system: str
    kinds: tuple[Kind, ...]
    slots: dict[str, tuple[str, ...]]
    digest: str

    def prompt(self, number: int, seed: int) -> Prompt:
        """The prompt of sample `number`."""
        cycle, place = divmod(number, sum(kind.share for kind in self.kinds))
        order = [(kind, nth) for kind in self.kinds for nth in range(kind.share)]
        kind, nth = order[_shuffled(len(order), f"{seed}/kinds/{cycle}")[place]]
        sizes = [len(self.slots[name]) for name in kind.slots]
        chosen = combination(sizes, cycle * kind.share + nth, f"{seed}/{kind.name}")
        values = {name: self.slots[name][i] for name, i in zip(kind.slots, chosen, strict=True)}
        text = _PLACEHOLDER.sub(lambda match: values[match[1]], kind.prompt)
        return Prompt(number, kind, values, self.system, text)


def sample_seed(seed: int, number: int, attempt: int) -> int:
    """The seed with which one attempt at a sample is written: 31 bits, which every server takes."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{attempt}".encode()).digest()[:4]) >> 1


def combination(sizes: Sequence[int], number: int, key: str) -> list[int]:
    """The `number`-th combination of one value out of each of several lists, given the lists' sizes.

    A one-to-one map from the numbers below the product of the sizes to the combinations; beyond, it begins again in
    another order. The longest list turns fastest, in a new order each time round; the other lists' values come up
    equally often, give or take a few. (Each value is a digit of the number, shifted by an amount that depends on the
    digits before it only: that can be undone digit by digit, so no two numbers meet.)
    """
    if not sizes:
        return []
    epoch, rest = divmod(number, math.prod(sizes))
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    digits = []
    for i in order:
        rest, digit = divmod(rest, sizes[i])
        digits.append(digit)
    longest = sizes[order[0]]
    fastest = _shuffled(longest, f"{key}/{epoch}/{digits[1:]}")[digits[0]]
    values = [0] * len(sizes)
    values[order[0]] = fastest
    turns, weight = 0, 1  # how often the longest list has gone round, as far as the digits so far tell
    for place, i in enumerate(order[1:], start=1):
        shift = _shuffled(longest, f"{key}/{epoch}/{place}/{digits[1:place]}")[fastest]
        values[i] = (digits[place] * _stride(longest, sizes[i]) + shift + longest * turns) % sizes[i]
        turns, weight = turns + weight * digits[place], weight * sizes[i]
    return values


def _stride(longest: int, size: int) -> int:
    """The step nearest to a whole round of the longest list that still reaches every one of `size` values."""
    return min((n for n in range(1, size + 1) if math.gcd(n, size) == 1), key=lambda n: abs(n - longest % size))


def _shuffled(count: int, key: str) -> list[int]:
    draw = random.Random(key)  # a string's seeding and `random()` are promised to stay the same in later Pythons
    return sorted(range(count), key=lambda _: draw.random())


def embedded_recipe() -> Path:
    """The recipe that comes with the package."""
    return Path(str(resources.files("mini_transformer.synthesis") / "recipe.toml"))


def load(path: Path, language: str) -> Recipe:
    """Read a recipe and check it. Raises `UserError` naming the entry that is wrong."""
    text = read_text(path)
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: no valid TOML: {error}") from None

    def text_of(table: dict[str, Any], name: str, where: str) -> str:
        if not isinstance(table.get(name), str) or not table[name].strip():
            raise UserError(f"{path}: {where}{name}: expected a text, found {table.get(name, 'nothing')!r}")
        return table[name].strip()

    def table_of(name: str) -> dict[str, Any]:
        if not isinstance(raw.get(name), dict) or not raw[name]:
            raise UserError(f"{path}: {name}: expected a table [{name}] with at least one entry")
        return raw[name]

    languages = table_of("languages")
    if language not in languages:
        raise UserError(f"--language: {language} is not in {path.name}, which has {', '.join(languages)}")
    slots = {}
    for name, values in table_of("slots").items():
        if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
            raise UserError(f"{path}: slots.{name}: expected a list of texts, none of them empty")
        if len(set(values)) < len(values):
            twice = next(value for value in values if values.count(value) > 1)
            raise UserError(f"{path}: slots.{name}: {twice!r} stands there twice")
        slots[name] = tuple(values)
    language_name = text_of(languages, language, "languages.")
    kinds = []
    for name, entry in table_of("kinds").items():
        where = f"kinds.{name}."
        if not isinstance(entry, dict):
            raise UserError(f"{path}: kinds.{name}: expected a table")
        if entry.get("form") not in FORMS:
            raise UserError(f"{path}: {where}form: {entry.get('form')!r} is not one of {', '.join(FORMS)}")
        words, share = entry.get("words", [1, 10_000]), entry.get("share", 1)
        if not (isinstance(words, list) and [type(n) for n in words] == [int, int] and 1 <= words[0] <= words[1]):
            raise UserError(f"{path}: {where}words: expected [fewest, most], found {words!r}")
        if type(share) is not int or not 1 <= share <= 100:
            raise UserError(f"{path}: {where}share: expected a whole number from 1 to 100, found {share!r}")
        prompt = text_of(entry, "prompt", where).replace("{language}", language_name)
        used = tuple(dict.fromkeys(_PLACEHOLDER.findall(prompt)))
        for slot in used:
            if slot not in slots:
                raise UserError(f"{path}: {where}prompt: {{{slot}}} is none of the slots {', '.join(slots)}")
        kinds.append(Kind(name, entry["form"], (words[0], words[1]), share, prompt, used))
    system = text_of(raw, "system", "").replace("{language}", language_name)
    return Recipe(system, tuple(kinds), slots, hashlib.sha256(text.encode()).hexdigest()[:16])
