"""Settings by name: what flags, a recipe or a Python call give becomes a `TrainConfig`, which a run records again."""

from collections.abc import Mapping
from dataclasses import Field, fields
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar, get_args, get_origin

from mini_transformer.config import TRAIN_PARTS, ModelConfig, Phase, PhaseSettings, TrainConfig, check_limits
from mini_transformer.errors import UserError, did_you_mean

OF_A_RUN = [f for part in TRAIN_PARTS.values() for f in fields(part) if f.metadata]
SETTINGS = {f.name: f for f in [*(f for f in fields(PhaseSettings) if f.metadata), *OF_A_RUN]}
OF_BPE = ("vocab_size", "bpe_dropout")
ONE_PHASE = ("max_iters", "epochs", "lr", "data_weights")
LENGTHS = ("epochs", "max_minutes")  # what comes to a number of iterations
TWO_PHASES = tuple(f.name for f in fields(PhaseSettings) if "pretrain" in f.name or "finetune" in f.name)
SHAPE = frozenset(f.name for f in fields(ModelConfig) if f.metadata) - {"dropout"}  # of the weights and their use
MIXTURE = frozenset({"data_weights", "pretrain_data_weights", "finetune_data_weights"})
Part = TypeVar("Part")


def find_setting(name: str) -> "Field[Any]":
    """The declaration of a setting of a training run. Raises `UserError` if there is none of this name."""
    if name not in SETTINGS:
        raise UserError(f"`{name}`: unknown setting{did_you_mean(name.replace('-', '_'), SETTINGS)}")
    return SETTINGS[name]


def to_type(setting: "Field[Any]", value: Any) -> Any:
    """A value in its setting's type. Raises `UserError` if it does not fit it, or its limits."""
    kind = (get_args(setting.type) or (setting.type,))[0]  # of `Path | None`: Path
    several = get_origin(setting.type) is tuple
    items = value if several and isinstance(value, list | tuple) else [value]
    accepted = {float: int | float, Path: str | Path, str: str | Path}.get(kind, kind)
    for item in items:
        if not isinstance(item, accepted) or isinstance(item, bool) is not (kind is bool):
            expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "a text")
            raise UserError(f"`{setting.name}`: {item!r:.80}: expected {expected}")
        if isinstance(item, int) and item.bit_length() > (1000 if "le" in setting.metadata else 63):
            raise UserError(f"`{setting.name}`: the number is too large")
        if item == "" and setting.default != "":
            raise UserError(f"`{setting.name}`: an empty name")
    value = tuple(map(kind, items)) if several else kind(value)
    check_limits(setting.name, value, setting.metadata)
    return value


def fill(part: type[Part], values: Mapping[str, Any]) -> Part:
    """A dataclass of settings from those of the values that are its own; the others keep their defaults."""
    settings = [f for f in fields(part) if f.metadata and values.get(f.name) is not None]  # type: ignore[arg-type]
    return part(**{f.name: to_type(f, values[f.name]) for f in settings})


def train_config(
    given: Mapping[str, Any], recipe: Mapping[str, Any] | None = None, fingerprints: Mapping[str, str] | None = None
) -> TrainConfig:
    """What settings by name mean: those given, then the recipe's, then the defaults.

    The data that is given decides between one phase and two; what a recipe says for the other case does not apply.
    Raises `UserError` for an unknown name, for a wrong value, and for settings of both cases.
    """
    for name in given:
        find_setting(name)
    given = {name: value for name, value in given.items() if value not in (None, [], ())}
    missing = [name for name in ("pretrain_data", "finetune_data") if name not in given]
    if "data" in given and len(missing) < 2:
        raise UserError("`data`: one phase, or `pretrain_data` and `finetune_data` for two; not both")
    if len(missing) == 1:
        raise UserError(f"`{missing[0]}`: missing; training in two phases needs both texts (for one phase, use `data`)")
    if "data" not in given and missing:
        raise UserError("`data`: missing; say which text to train on, such as fables.txt")
    names, foreign = (("train",), TWO_PHASES) if missing else (("pretrain", "finetune"), ONE_PHASE)
    if wrong := [name for name in foreign if name in given]:
        where = "two phases" if missing else "one phase (`data`)"
        if not missing and wrong[0] in ("max_iters", "lr"):
            where += f"; here it is `{wrong[0]}_pretrain` and `{wrong[0]}_finetune`"
        raise UserError(f"`{wrong[0]}`: belongs to training in {where}")
    dropped = (*foreign, "preview", "replay") if missing else foreign
    if given.get("tokenizer", "bpe") != "bpe":
        dropped = (*dropped, *OF_BPE)  # of the recipe's own tokenizer
    values = {name: value for name, value in (recipe or {}).items() if name not in dropped} | given
    if "epochs" in given and (others := [name for name in ("max_iters", "max_minutes") if name in given]):
        raise UserError(f"`epochs`: says how long a run is, as `{others[0]}` does; give one of them")
    if any(name in LENGTHS or name.startswith("max_iters") for name in given):
        values |= {name: given.get(name, 0.0) for name in LENGTHS}  # a recipe's give way
    settings, phases = fill(PhaseSettings, values), []
    for name in names:
        data, suffix = ("data", "") if name == "train" else (f"{name}_data", f"_{name}")
        paths, weights = tuple(map(Path, getattr(settings, data))), getattr(settings, f"{data}_weights")
        if weights and len(weights) != len(paths):
            raise UserError(f"`{data}`: {len(weights)} weights for {len(paths)} sources")
        iters, lr = getattr(settings, f"max_iters{suffix}"), getattr(settings, f"lr{suffix}")
        phases.append(Phase(name, paths, iters, lr, weights))
    parts: dict[str, Any] = {name: fill(part, values) for name, part in TRAIN_PARTS.items()}
    return TrainConfig(tuple(phases), **parts, fingerprints=fingerprints or {})


def recorded_settings(config: TrainConfig) -> dict[str, Any]:
    """Every setting of a run by its name, as JSON; given as a recipe together with the same texts, they repeat the run.

    Texts are not among them: their fingerprints are compared. Of a tokenizer's folder, only the name is recorded.
    """
    values: dict[str, Any] = {}
    for phase in config.phases:
        suffix = config.suffix(phase)
        values |= {f"max_iters{suffix}": phase.iters, f"lr{suffix}": phase.lr}
        if phase.weights:
            values[f"{phase.name}_data_weights" if suffix else "data_weights"] = list(phase.weights)
    for part in (getattr(config, name) for name in TRAIN_PARTS):
        settings = (f for f in fields(part) if f.metadata and not f.metadata.get("local"))
        values |= {f.name: value for f in settings if (value := getattr(part, f.name)) is not None}
    for name in LENGTHS:  # which came to `max_iters`
        del values[name]
    folder = Path(config.text.tokenizer)
    return values | {"tokenizer": folder.name if folder.exists() else config.text.tokenizer}


def changed_settings(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The recorded settings that make two runs different ones, each with its two values."""
    # a setting that came later than a record had its default then
    then, now = ({f.name: f.default for f in OF_A_RUN} | dict(settings) for settings in (there, here))
    names = [n for n in dict.fromkeys([*here, *there]) if then.get(n) != now.get(n)]
    about = {n: SETTINGS[n].metadata if n in SETTINGS else {} for n in names}
    return {n: [then.get(n), now.get(n)] for n in names if not (about[n].get("free") or about[n].get("local"))}


def settings_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The first of the `changed_settings`, in words; empty if there is none."""
    return next((in_words(name, there, here) for name in changed_settings(there, here)), "")


def in_words(name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """A setting with its values in two runs, whatever a damaged record has in its place."""
    values = (shorten(str(run.get(name, "none")), 100, placeholder=" ...") for run in (there, here))
    return "`{}`: {} there, {} here".format(name, *values)
