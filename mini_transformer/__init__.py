"""Mini-Transformer: train small GPT-OSS-style language models on your own texts, and write with them.

The Python interface: `train`, `load`, `evaluate`, and `UserError`, which they raise where something that was given is
wrong. What is heavy is imported when it is used.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mini_transformer.errors import UserError

if TYPE_CHECKING:
    from mini_transformer.evaluation.likelihood import Likelihood
    from mini_transformer.generation.engine import Engine

__version__ = "0.1.0"
__all__ = ["UserError", "evaluate", "load", "train"]


def train(
    data: str | Path | Sequence[str | Path] | None = None,
    out_dir: str | Path = "out",
    recipe: str | Path | None = None,
    **settings: Any,
) -> Path:
    """Train a model on texts and return its folder; the same call goes on with a run that was stopped.

    `settings`: the flags of `train.py`, with `_` for `-`: `max_iters=500`, or `pretrain_data=…` and `finetune_data=…`
    in place of `data`. Raises `UserError` for wrong input before anything is written, and `KeyboardInterrupt` if it is
    interrupted: the state is saved then.
    """
    started = time.monotonic()
    from mini_transformer.commands.train import configure
    from mini_transformer.training.launch import processes
    from mini_transformer.training.run import train as run
    from mini_transformer.training.trainer import Stopped

    config = configure({**settings, "data": data, "out_dir": out_dir, "recipe": recipe})
    if processes(config) > 1:
        raise UserError("`nproc`, `gpus`: one process trains in Python; `train.py` and torchrun start several")
    try:
        run(config, started)
    except Stopped as stopped:
        if stopped.args:
            raise KeyboardInterrupt(f"stopped {stopped}; there is nothing to save") from None
        folder = config.run.fork or config.run.out_dir
        raise KeyboardInterrupt(f"stopped; the state is saved in {folder}, and the same call goes on") from None
    return config.run.fork or config.run.out_dir


def load(folder: str | Path = "out", device: str = "auto", precision: str = "float32") -> "Engine":
    """The engine of a model folder: `.generate`, `.stream`, `.score`. Raises `UserError` if there is no whole model.

    `device`: auto (CUDA, MPS, then CPU), cpu, cuda, cuda:1, mps. `precision`: float32, or bfloat16 to round the
    weights, of which a step on a CPU then reads half as many bytes.
    """
    from mini_transformer.generation.engine import Engine

    return Engine.load(folder, device, precision)


def evaluate(
    folder: str | Path, file: str | Path, device: str = "auto", encoding: str = "utf-8", progress: bool = False
) -> "Likelihood":
    """What it costs a model to reproduce a text file: bits per character and the figures behind it.

    `progress`: with a bar. Raises `UserError` for a file or a model that cannot be read.
    """
    from mini_transformer.data.reading import read_text
    from mini_transformer.evaluation.likelihood import measure

    text = read_text(Path(file), encoding)
    engine = load(folder, device)
    return measure(engine.model, engine.tokenizer, text, str(file), progress)
