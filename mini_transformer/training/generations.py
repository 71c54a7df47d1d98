"""Generations: a run that first trains its own teachers, each in a folder of its own.

Each generation starts from fresh weights of another seed and learns from all those before it (see `distillation`). They
are runs like any other: the same command goes on wherever it was stopped.
"""

from dataclasses import replace

from mini_transformer.config import TrainConfig
from mini_transformer.errors import UserError
from mini_transformer.training.run_folder import RUN

TEACHERS = "teachers"


def generations(config: TrainConfig) -> list[TrainConfig]:
    """The runs that a run consists of: those of its teachers, if it has any of its own, then itself.

    Of `max_minutes` with N generations each teacher gets a 2 N-th part. Raises `UserError` where the folder holds a run
    of one generation, and for a fork.
    """
    run, number = config.run, config.run.generations
    if number == 1:
        return [config]
    if run.fork:
        raise UserError("`fork`: a run of several generations cannot be forked; give its folders as `teacher`")
    if (run.out_dir / RUN).exists() and not (run.out_dir / TEACHERS).is_dir() and not run.overwrite:
        why = "holds a run without generations; choose another `out_dir`"
        raise UserError(f"`out_dir`: {run.out_dir} {why}; `overwrite` gives that run up")
    folders = [run.out_dir / TEACHERS / str(i) for i in range(1, number)]
    others = {name: value for name, value in config.fingerprints.items() if name != "teacher"}
    parts = []
    for i, folder in enumerate(folders, start=1):
        minutes, teachers = run.max_minutes * i / (2 * number), (*run.teacher, *folders[: i - 1])
        part = replace(run, out_dir=folder, seed=run.seed + i, max_minutes=minutes, teacher=teachers, generations=1)
        parts.append(replace(config, run=part, fingerprints=others))
    return [*parts, replace(config, run=replace(run, teacher=(*run.teacher, *folders)))]
