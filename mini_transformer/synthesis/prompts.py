"""Prompts: sample number k has its own, a pure function of the recipe, the seed and k.

A recipe (TOML) has kinds of text and lists of slots to fill their prompts with. The k-th value of a slot comes from a
list that is shuffled anew each time it is used up, so every value comes up equally often, and every kind too (or by its
`share`).
"""

import hashlib
import random
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

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
        order = [(kind, nth) for kind in self.kinds for nth in range(kind.share)]
        kind, nth = order[_pick(len(order), number, f"{seed}/kinds")]
        of_its_kind = number // len(order) * kind.share + nth
        values = {
            name: self.slots[name][_pick(len(self.slots[name]), of_its_kind, f"{seed}/{kind.name}/{name}")]
            for name in kind.slots
        }
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
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not in UTF-8, as a recipe must be; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: no valid TOML: {error}") from None

    def require(met: bool, problem: str) -> None:
        if not met:
            raise UserError(f"{path}: {problem}")

    def only(table: dict[str, Any], names: tuple[str, ...], where: str) -> None:
        for name in table:
            require(name in names, f"{where}{name}: unknown; there are {', '.join(names)}")

    def table_of(name: str) -> dict[str, Any]:
        good = isinstance(raw.get(name), dict) and raw[name] != {}
        require(good, f"{name}: expected a table [{name}] with at least one entry")
        return raw[name]

    def text_of(table: dict[str, Any], name: str, where: str = "") -> str:
        value = table.get(name, "nothing")
        good = name in table and isinstance(value, str) and value.strip() != ""
        require(good, f"{where}{name}: expected a text, found {value!r}")
        return value.strip()

    def no_braces(text: str, where: str) -> None:
        brace = re.search(r".{0,10}[{}].{0,10}", text)
        found = brace[0].strip() if brace else ""
        require(not brace, f"{where}: a brace that holds no place, at {found!r}; only {{name}} of a slot does")

    only(raw, ("system", "languages", "kinds", "slots"), "")
    languages, kinds, slots = table_of("languages"), [], table_of("slots")
    if language not in languages:
        raise UserError(f"--language: {language} is not in {path.name}, which has {', '.join(languages)}")
    for name, values in slots.items():
        good = isinstance(values, list) and values != [] and all(isinstance(v, str) and v.strip() for v in values)
        require(good, f"slots.{name}: expected a list of texts, none of them empty")
        for value in values:
            require(values.count(value) == 1, f"slots.{name}: {value!r} stands there twice")
            no_braces(value, f"slots.{name}")
    language_name = text_of(languages, language, "languages.")
    for name, entry in table_of("kinds").items():
        where = f"kinds.{name}."
        require(isinstance(entry, dict), f"kinds.{name}: expected a table")
        only(entry, ("form", "words", "share", "prompt"), where)
        form, words, share = entry.get("form"), entry.get("words", [1, 10_000]), entry.get("share", 1)
        require(form in FORMS, f"{where}form: {form!r} is not one of {', '.join(FORMS)}")
        good = isinstance(words, list) and [type(n) for n in words] == [int, int] and 1 <= words[0] <= words[1]
        require(good, f"{where}words: expected [fewest, most], found {words!r}")
        good = type(share) is int and 1 <= share <= 100
        require(good, f"{where}share: expected a whole number from 1 to 100, found {share!r}")
        prompt = text_of(entry, "prompt", where).replace("{language}", language_name)
        used = tuple(dict.fromkeys(_PLACEHOLDER.findall(prompt)))
        for slot in used:
            require(slot in slots, f"{where}prompt: {{{slot}}} is none of the slots {', '.join(slots)}")
        no_braces(_PLACEHOLDER.sub("", prompt), f"{where}prompt")
        kinds.append(Kind(name, form, (words[0], words[1]), share, prompt, used))
    for name in slots:
        used_somewhere = any(name in kind.slots for kind in kinds)
        require(used_somewhere, f"slots.{name}: no prompt has {{{name}}}; use it or take it out")
    system = text_of(raw, "system").replace("{language}", language_name)
    no_braces(system, "system")
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Recipe(system, tuple(kinds), {name: tuple(values) for name, values in slots.items()}, digest)
