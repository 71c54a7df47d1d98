"""Recipes: settings that belong together, as TOML files, each with the result that was measured with it."""

import itertools
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from mini_transformer.errors import UserError, did_you_mean
from mini_transformer.settings import find_setting, to_type

MAX_BYTES = 1 << 20

Curve = tuple[tuple[float, float], ...]  # shares of a run, ascending, and the bits per character that it had there


@dataclass(frozen=True)
class Recipe:
    """Settings by name, and the fingerprints of the texts that they are for, where it repeats a run."""

    name: str = ""
    about: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    curve: Curve = ()


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(file.name[:-5] for file in resources.files(__name__).iterdir() if file.name.endswith(".toml"))


def load_recipe(name_or_file: str | Path) -> Recipe:
    """A recipe of the package, of a .toml file, or the `run.json` of a run. Raises `UserError` for any other."""
    name, names = str(name_or_file), recipe_names()
    if name not in names and not name.endswith((".toml", ".json")):
        hint = did_you_mean(name, names, f"; there are {', '.join(names)}, or name a .toml file or a run.json")
        raise UserError(f"`recipe`: {name!r} is no recipe{hint}")
    with (resources.files(__name__) / f"{name}.toml" if name in names else Path(name)).open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"{name}: too large for a recipe")
    of_run = name.endswith(".json")
    try:
        table = (json.loads if of_run else tomllib.loads)(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: cannot be read as {'JSON' if of_run else 'TOML'} ({error})") from None
    if not isinstance(table, dict) or not isinstance(table.get("settings"), dict):
        raise UserError(f"{name}: no recipe: it has no table of settings")
    if unknown := [key for key in table if key not in ("about", "settings", "measured") and not of_run]:
        raise UserError(f"{name}: {unknown[0]}: unknown; settings stand below [settings]")
    about, fingerprints, settings = table.get("about", ""), table.get("fingerprints", {}), {}
    if not isinstance(about, str):
        raise UserError(f"{name}: about: expected a text")
    if not isinstance(fingerprints, dict) or not all(isinstance(value, str) for value in fingerprints.values()):
        raise UserError(f"{name}: fingerprints: expected a table of texts")
    try:
        for key, value in table["settings"].items():
            if find_setting(key).metadata.get("local") and (key, value) != ("init_from", "base"):  # which all have
                raise UserError(f"`{key}`: concerns one machine or one call: give it as a flag")
            settings[key] = to_type(find_setting(key), value)
    except UserError as error:  # a setting in a file is no flag
        raise UserError(f"{name}: {str(error).replace('`', '')}") from None
    return Recipe(name, about, settings, fingerprints, _curve(table.get("measured"), name))


def _curve(measured: Any, name: str) -> Curve:
    """The curve that was measured. Raises `UserError` where it is none."""
    points = measured.get("curve", []) if isinstance(measured, dict) else []
    pairs = isinstance(points, list) and all(isinstance(point, list) and len(point) == 2 for point in points)
    if not pairs or not all(type(x) in (int, float) and math.isfinite(x) for point in points for x in point):
        raise UserError(f"{name}: curve: expected pairs of a share of the run and its bits per character")
    return tuple(sorted((float(share), float(bits)) for share, bits in points))


def expected_bits(curve: Curve, share: float) -> float | None:
    """The bits per character that the recipe's own run had after this share of it; `None` before its first point."""
    for (before, bits_before), (after, bits) in itertools.pairwise(curve):
        if before <= share <= after:
            return bits_before + (bits - bits_before) * (share - before) / max(after - before, 1e-9)
    return None
