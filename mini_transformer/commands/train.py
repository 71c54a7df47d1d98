"""`train`: flags to settings, then the run."""

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mini_transformer.cli import EXIT_INTERRUPTED, Parser, add_fields
from mini_transformer.config import PRESETS, ModelConfig, OptimConfig, Phase, RunConfig, TextConfig, TrainConfig, flag
from mini_transformer.errors import UserError

ITERS, LR, LR_PRETRAIN = 10_000, 5e-4, 3e-4
NUMBER = r"\d+(\.\d*)?|\.\d+"
PRESET_HELP = (
    "shape, batch, rate and length that suit each other: tiny (minutes on two CPU cores), laptop (under an hour), "
    "mission (24 layers of width 512, for a GPU; the default)"
)


def train_parser(prog: str = "train") -> Parser:
    """The flags of `train.py`."""
    purpose = "Train a small GPT-OSS-style language model on your texts, in one phase (--data) or two "
    purpose += "(--pretrain-data, then --finetune-data). The same command continues a run that was stopped."
    if prog == "prepare":
        purpose = "Read and tokenise the texts of a run ahead of time. The flags are those of train."
    parser = Parser(
        prog=prog,
        description=purpose,
        formatter_class=argparse.HelpFormatter,
    )
    text = parser.add_argument_group("Text: files, folders of .txt files, patterns; FILE:WEIGHT for a mixture")
    for name, help in (
        ("--data", "text to train on, in one phase"),
        ("--pretrain-data", "text of the first of two phases"),
        ("--finetune-data", "text of the second of two phases"),
    ):
        text.add_argument(name, nargs="+", action="extend", metavar="FILE", help=help)
    length = parser.add_argument_group("Length and rate of the phases")
    length.add_argument("--preset", choices=PRESETS, help=PRESET_HELP)
    length.add_argument("--max-iters", type=int, metavar="N", help=f"iterations of --data (default: {ITERS})")
    length.add_argument("--lr", type=float, metavar="X", help=f"peak learning rate of --data (default: {LR})")
    for phase, lr in (("pretrain", LR_PRETRAIN), ("finetune", LR)):
        length.add_argument(f"--max-iters-{phase}", type=int, metavar="N", help=f"(default: {ITERS})")
        length.add_argument(f"--lr-{phase}", type=float, metavar="X", help=f"(default: {lr})")
    for part in (TextConfig, ModelConfig, OptimConfig, RunConfig):
        add_fields(parser, part)
    return parser


def split_weight(word: str) -> tuple[str, str]:
    """The path, and the weight or what stands in its place, of `FILE:WEIGHT`; all of `FILE`, and no weight."""
    path, colon, weight = word.rpartition(":")
    meant = re.fullmatch(NUMBER, weight) or (weight and path and Path(path).exists())
    return (path, weight) if colon and meant and not Path(word).exists() else (word, "")


def sources(words: Sequence[str], name: str) -> tuple[tuple[Path, ...], tuple[float, ...]]:
    """The paths and the weights that `FILE` or `FILE:WEIGHT` mean.

    Raises `UserError` for a weight that is no number above 0, and where some sources have one and others have none.
    """
    paths, weights = [], []
    for word in words:
        path, weight = split_weight(word)
        if not path:
            raise UserError(f"{flag(name)}: {word!r}: an empty name")
        if weight:
            if not re.fullmatch(NUMBER, weight) or not float(weight) > 0:
                raise UserError(f"{flag(name)}: {word}: a weight must be above 0, a number such as 0.7")
            weights.append(float(weight))
        paths.append(Path(path))
    if weights and len(weights) < len(paths):
        raise UserError(f"{flag(name)}: give every source a weight, or none (FILE:0.7 FILE:0.3)")
    return tuple(paths), tuple(weights)


def train_config(argv: Sequence[str], prog: str = "train") -> TrainConfig:
    """The settings that the flags of `train.py` mean: flags first, then the preset, then the defaults."""
    given = vars(train_parser(prog).parse(argv))
    preset = PRESETS[given.pop("preset") or "mission"]

    def part(kind: Any) -> Any:
        names = [f.name for f in dataclasses.fields(kind) if f.metadata]
        return kind(**{name: (preset | given)[name] for name in names if name in preset | given})

    iters, lr = preset.get("iters", ITERS), preset.get("lr", LR)

    def phase(name: str, suffix: str, usual_lr: float) -> Phase:
        def value(key: str, usual: Any) -> Any:
            return usual if given[key + suffix] is None else given[key + suffix]

        paths, weights = sources(given[f"{name}_data"], "data" if not suffix else f"{name}_data")
        return Phase(name, paths, value("max_iters", iters), value("lr", usual_lr), weights)

    two = given["pretrain_data"], given["finetune_data"]
    wrong = ["max_iters_pretrain", "max_iters_finetune", "lr_pretrain", "lr_finetune"]
    if given["data"] and any(two):
        raise UserError("--data: one phase, or --pretrain-data and --finetune-data for two; not both")
    if given["data"]:
        given["train_data"] = given["data"]
        phases: tuple[Phase, ...] = (phase("train", "", lr),)
    elif all(two):
        lr_pretrain = lr * LR_PRETRAIN / LR
        phases = (phase("pretrain", "_pretrain", lr_pretrain), phase("finetune", "_finetune", lr))
        wrong = ["max_iters", "lr"]
    elif any(two):
        missing = "--finetune-data" if two[0] else "--pretrain-data"
        raise UserError(f"{missing}: missing; training in two phases needs both texts (for one phase, use --data)")
    else:
        raise UserError("--data: missing; say which text to train on, such as --data fables.txt")
    for name in wrong:
        if given[name] is not None:
            other = "two phases" if len(phases) == 1 else "one phase (--data)"
            raise UserError(f"{flag(name)}: belongs to training in {other}")
    if given.get("val_data") and split_weight(str(given["val_data"]))[1]:
        raise UserError(f"--val-data: {given['val_data']}: takes no weight; name the file alone")
    return TrainConfig(phases, part(ModelConfig), part(OptimConfig), part(RunConfig), part(TextConfig))


def main(argv: Sequence[str]) -> int:
    """Train a model, or go on with a run that was stopped."""
    config = train_config(argv)
    from mini_transformer.training.run import train as run
    from mini_transformer.training.trainer import Stopped

    try:
        run(config)
    except Stopped:
        print(f"Stopped; the state is saved in {config.run.out_dir}. The same command goes on from here.")
        return EXIT_INTERRUPTED
    return 0
