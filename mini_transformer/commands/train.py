"""`train`: flags to settings, then the run."""

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mini_transformer.cli import EXIT_INTERRUPTED, Parser, add_fields, name
from mini_transformer.config import ModelConfig, OptimConfig, PhaseSettings, RunConfig, TextConfig, TrainConfig
from mini_transformer.errors import UserError
from mini_transformer.recipes import Recipe, load_recipe, recipe_names
from mini_transformer.runtime import is_launched, log
from mini_transformer.settings import train_config

NUMBER = r"\d+(\.\d*)?|\.\d+"
DESCRIPTIONS = {
    "train": "Train a small GPT-OSS-style language model on your texts, in one phase (--data) or two (--pretrain-data, "
    "then --finetune-data). The same command continues a run that was stopped.",
    "prepare": "Read and tokenize the texts of a run ahead of time. The flags are those of train.",
}


def parse_config(argv: Sequence[str], prog: str = "train") -> TrainConfig:
    """The settings that the flags of `train.py` mean. The flags most used come first."""
    usage = f"{prog} --data FILE [flags]\n       {prog} --pretrain-data FILE --finetune-data FILE [flags]"
    parser = Parser(prog=prog, usage=usage, description=DESCRIPTIONS[prog])
    text = parser.add_argument_group("Text", "files, folders of .txt files, patterns; FILE:WEIGHT in a mixture")
    add_fields(text, PhaseSettings, ["data", "pretrain_data", "finetune_data"])
    add_fields(text, RunConfig, ["val_data"])
    add_fields(text, TextConfig)
    add_fields(text, RunConfig, ["encoding"])
    length = parser.add_argument_group("Recipe, length and learning rate")
    recipes = "; ".join(f"{name}: {load_recipe(name).about}" for name in recipe_names())
    help = f"settings that suit each other ({recipes}), a .toml file, or the run.json of a run to repeat; flags win"
    length.add_argument("--recipe", "--preset", type=name, metavar="NAME|FILE", help=help, default=argparse.SUPPRESS)
    add_fields(length, RunConfig, ["epochs", "max_minutes"])
    for setting in ("max_iters", "lr"):
        add_fields(length, PhaseSettings, [setting, f"{setting}_pretrain", f"{setting}_finetune"])
    add_fields(parser.add_argument_group("Model"), ModelConfig)
    add_fields(parser.add_argument_group("Optimization"), OptimConfig)
    elsewhere = ("val_data", "encoding", "epochs", "max_minutes")
    run = [f.name for f in fields(RunConfig) if f.name not in elsewhere]
    add_fields(parser.add_argument_group("Run"), RunConfig, run)
    return configure(vars(parser.parse(argv)))


def configure(given: dict[str, Any]) -> TrainConfig:
    """The settings of a run from settings by name, `recipe` among them; sources are `FILE` or `FILE:WEIGHT`.

    Raises `UserError` for an unknown name, for a wrong value, and for settings that do not go together.
    """
    name_or_file = given.pop("recipe", None)
    recipe = Recipe() if name_or_file is None else load_recipe(name_or_file)
    if split_weight(str(given.get("val_data", "")))[1]:
        raise UserError(f"`val_data`: {given['val_data']}: takes no weight; name the file alone")
    for data in ("data", "pretrain_data", "finetune_data"):
        if given.get(data):
            words = given[data] if isinstance(given[data], list | tuple) else [given[data]]
            given[data], weights = sources([str(word) for word in words], data)
            if weights:
                given[f"{data}_weights"] = weights
    config = replace(train_config(given, recipe.settings, recipe.fingerprints), curve=recipe.curve)
    if config.run.init_from is None and "init" in recipe.fingerprints:
        raise UserError("`recipe`: it is the record of a run from a model's weights; name its folder as `init_from`")
    if config.run.init_from is None and not config.run.teacher:
        return config
    from mini_transformer.model.pretrained import model_folder
    from mini_transformer.training.initialisation import start_from

    config = replace(config, run=replace(config.run, teacher=tuple(map(model_folder, config.run.teacher))))
    if config.run.init_from is None:
        return config
    folder = model_folder(config.run.init_from)
    config = replace(config, run=replace(config.run, init_from=folder))
    return start_from(folder, config, given, recipe.settings)


def split_weight(word: str) -> tuple[str, str]:
    """The path and the weight (or what is in its place) of `FILE:WEIGHT`; of `FILE`, all of it and no weight."""
    path, colon, weight = word.rpartition(":")
    meant = re.fullmatch(NUMBER, weight) or (weight and path and Path(path).exists())
    return (path, weight) if colon and meant and not Path(word).exists() else (word, "")


def sources(words: Sequence[str], name: str) -> tuple[tuple[Path, ...], tuple[float, ...]]:
    """The paths and the weights that `FILE` or `FILE:WEIGHT` mean.

    Raises `UserError` for a weight that is no number above 0, and where some sources have one and others have none.
    """
    split = [split_weight(word) for word in words]
    for word, (path, weight) in zip(words, split, strict=True):
        if not path:
            raise UserError(f"`{name}`: {word!r}: an empty name")
        if weight and not (re.fullmatch(NUMBER, weight) and float(weight) > 0):
            raise UserError(f"`{name}`: {word}: a weight must be above 0, a number such as 0.7")
    weights = tuple(float(weight) for _, weight in split if weight)
    if weights and len(weights) < len(split):
        raise UserError(f"`{name}`: give every source a weight, or none (FILE:0.7 FILE:0.3)")
    return tuple(Path(path) for path, _ in split), weights


def main(argv: Sequence[str]) -> int:
    """Train a model, or go on with a run that was stopped."""
    started = time.monotonic()
    if not is_launched():
        config = parse_config(argv)
        from mini_transformer.training.launch import launch, processes

        if (number := processes(config)) > 1:
            return launch(argv, number)
    from mini_transformer.training.distributed import join, only_one_reports
    from mini_transformer.training.run import train as run
    from mini_transformer.training.trainer import Stopped

    with only_one_reports():
        join()
        config = parse_config(argv)
        try:
            run(config, started)
        except Stopped as stopped:
            if stopped.args:
                log(f"Stopped {stopped}; there is nothing to save.")
                return EXIT_INTERRUPTED
            folder = config.run.fork or config.run.out_dir
            log(f"Stopped; the state is saved in {folder}. The same command goes on from here.")
            return EXIT_INTERRUPTED
    return 0
