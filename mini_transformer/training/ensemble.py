"""An ensemble of teachers: a run that first trains some of its own, each in a folder of its own, then learns from them.

Each begins with weights and an order of the text of its own seed, and sees the text alone: what one of them guesses
wrong another may know, so that their mean is better than each, and the run's model learns from it (see `distillation`
and Allen-Zhu and Li 2020, arXiv 2012.09816). They are runs like any other: the same command goes on wherever it was
stopped.
"""

from dataclasses import replace

from mini_transformer.config import TrainConfig
from mini_transformer.errors import UserError
from mini_transformer.training.run_folder import RUN

TEACHERS = "teachers"


def with_own_teachers(config: TrainConfig) -> list[TrainConfig]:
    """The runs that a run consists of: those of its own teachers, if it has any, then itself.

    All teachers together get half of `max_minutes`, which each part counts from its own beginning: one that was stopped
    leaves the others theirs. Raises `UserError` where the folder holds a run without teachers of its own, and for a
    fork.
    """
    run, number = config.run, config.run.ensemble
    if number == 0:
        return [config]
    if run.fork:
        raise UserError("`fork`: a run with an ensemble cannot be forked; give its folders as `teacher`")
    if (run.out_dir / RUN).exists() and not (run.out_dir / TEACHERS).is_dir() and not run.overwrite:
        why = "holds a run without an ensemble; choose another `out_dir`"
        raise UserError(f"`out_dir`: {run.out_dir} {why}; `overwrite` gives that run up")
    folders = [run.out_dir / TEACHERS / str(i) for i in range(1, number + 1)]
    without = {name: value for name, value in config.fingerprints.items() if name != "teacher"}
    parts = []
    for i, folder in enumerate(folders, start=1):
        minutes = run.max_minutes / (2 * number)
        part = replace(run, out_dir=folder, seed=run.seed + i, max_minutes=minutes, teacher=(), ensemble=0)
        parts.append(replace(config, run=part, fingerprints=without))
    own = replace(run, max_minutes=run.max_minutes / 2, teacher=(*run.teacher, *folders))
    return [*parts, replace(config, run=own)]
