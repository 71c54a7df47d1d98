"""Prompts: sample number k has its own, a pure function of the recipe, the seed and k.

A recipe (TOML) has kinds of text and lists of slots to fill their prompts with. The k-th value of a slot comes from a
list that is shuffled anew each time it is used up, so every value comes up equally often, and every kind too (or by its
`share`).
"""

import hashlib
import random
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mini_transformer.errors import UserError

FORMS = ("verse", "prose", "dialogue")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


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
        order = [(kind, nth) for kind in self.kinds for nth in range(kind.share)]
        kind, nth = order[_pick(len(order), number, f"{seed}/kinds")]
        nth += number // len(order) * kind.share  # of its kind
        slots, key = self.slots, f"{seed}/{kind.name}"
        values = {name: slots[name][_pick(len(slots[name]), nth, f"{key}/{name}")] for name in kind.slots}
        text = _PLACEHOLDER.sub(lambda match: values[match[1]], kind.prompt)
        return Prompt(number, kind, values, self.system, text)


def sample_seed(seed: int, number: int, attempt: int) -> int:
    """The seed with which one attempt at a sample is written: 31 bits, which every server takes."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{attempt}".encode()).digest()[:4]) >> 1


def _pick(size: int, number: int, key: str) -> int:
    """The `number`-th index below `size`: all of them in a random order, then all in another, and so on."""
    turn, place = divmod(number, size)
    draw = random.Random(f"{key}/{turn}")  # a string's seeding and `random()` stay the same in later Pythons
    return sorted(range(size), key=lambda _: draw.random())[place]


def embedded_recipe() -> Path:
    """The recipe that comes with the package."""
    return Path(str(resources.files("mini_transformer.synthesis") / "recipe.toml"))


def load(path: Path, language: str) -> Recipe:
    """Read a recipe and check it. Raises `UserError` naming the entry that is wrong."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # some editors begin a file with a mark of UTF-8
        raw = tomllib.loads(text)
        _check(raw, _RECIPE)
        if language not in raw["languages"]:
            raise UserError(f"`language`: {language} is not in {path.name}, which has {', '.join(raw['languages'])}")
        return _recipe(raw, raw["languages"][language].strip(), hashlib.sha256(text.encode()).hexdigest()[:16])
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not in UTF-8, as a recipe must be; save it as UTF-8") from None
    except ValueError as error:
        problem = "no valid TOML: " * isinstance(error, tomllib.TOMLDecodeError)
        raise UserError(f"{path}: {problem}{error}") from None


# What a recipe has in it: of each entry a check, and the same in words. `*` stands for any name.
_TEXT = (lambda value: isinstance(value, str) and value.strip(), "a text")
_TEXTS = (lambda value: isinstance(value, list) and value and all(map(_TEXT[0], value)), "a list of texts, none empty")
_RANGE = (lambda v: isinstance(v, list) and [*map(type, v)] == [int, int] and 1 <= v[0] <= v[1], "[fewest, most]")
_SHARE = (lambda value: type(value) is int and 1 <= value <= 100, "a whole number from 1 to 100")
_FORM = (lambda value: value in FORMS, f"one of {', '.join(FORMS)}")
_KIND = {"form": _FORM, "words": _RANGE, "share": _SHARE, "prompt": _TEXT}
_RECIPE = {"system": _TEXT, "languages": {"*": _TEXT}, "kinds": {"*": _KIND}, "slots": {"*": _TEXTS}}
_DEFAULTS = {"words": [1, 10_000], "share": 1}


def _check(value: Any, expected: Any, where: str = "") -> None:
    """Raises `ValueError` naming the first entry that is wrong."""
    if not isinstance(expected, dict):
        fits, words = expected
        _require(fits(value), f"{where}: expected {words}, found {'nothing' if value is None else repr(value):.80}")
        return
    _require(isinstance(value, dict) and value != {}, f"{where}: expected a table with at least one entry")
    for name in value if "*" in expected else {**value, **expected}:
        place = f"{where}.{name}".lstrip(".")
        _require("*" in expected or name in expected, f"{place}: unknown; there are {', '.join(expected)}")
        _check(value.get(name, _DEFAULTS.get(name)), expected.get(name, expected.get("*")), place)


def _recipe(raw: dict[str, Any], language: str, digest: str) -> Recipe:
    slots, kinds, used = raw["slots"], [], set[str]()
    for name, entry in raw["kinds"].items():
        form, words, share, prompt = ({**_DEFAULTS, **entry}[key] for key in _KIND)
        prompt = prompt.strip().replace("{language}", language)
        its_slots = _places(prompt, slots, f"kinds.{name}.prompt")
        kinds.append(Kind(name, form, (words[0], words[1]), share, prompt, its_slots))
        used.update(its_slots)
    for name, values in slots.items():
        for value in values:
            _require(values.count(value) == 1, f"slots.{name}: {value!r} stands there twice")
            _places(value, (), f"slots.{name}")
        _require(name in used, f"slots.{name}: no prompt has {{{name}}}; use it or take it out")
    system = raw["system"].strip().replace("{language}", language)
    _places(system, (), "system")
    return Recipe(system, tuple(kinds), {name: tuple(values) for name, values in slots.items()}, digest)


def _places(text: str, slots: Iterable[str], where: str) -> tuple[str, ...]:
    """The slots that a text has places for, once each. Raises `ValueError` for a brace that is no place of `slots`."""
    found = re.findall(r"\{[^{}]*\}|[{}]", text)
    for place in found:
        _require(place[1:-1] in slots, f"{where}: {place} is none of the slots {', '.join(slots) or '(none here)'}")
    return tuple(dict.fromkeys(place[1:-1] for place in found))


def _require(met: Any, problem: str) -> None:
    if not met:
        raise ValueError(problem)
