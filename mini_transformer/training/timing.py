"""As many iterations as fit a number of epochs, or of minutes, by steps that are tried out before the run."""

import math
import time
from dataclasses import replace

from mini_transformer.config import TrainConfig
from mini_transformer.data.prepare import TrainingData
from mini_transformer.errors import UserError
from mini_transformer.training.averaging import averaged_weights
from mini_transformer.training.calibration import EVALUATIONS
from mini_transformer.training.distributed import from_rank_zero
from mini_transformer.training.run_folder import RUN, RunFolder
from mini_transformer.training.trainer import Trainer

SHARE = 0.92  # of the minutes that is planned with: speed varies, and the results have to be written
LEAST = 10  # iterations of a phase that are worth training
TRIAL = 0.015  # of the time goes into trying out
WARM_UP = 3  # steps that are not counted


def recorded_iterations(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """The same run with the iterations that fitted `max_minutes` when it began, if the folder holds a run."""
    record = folder.read_record(config.run.overwrite) if (folder.folder / RUN).is_file() else None
    settings = record["settings"] if record else {}
    names = [f"max_iters{config.suffix(phase)}" for phase in config.phases]
    if not all(isinstance(settings.get(name), int) for name in names):
        return config
    phases = (replace(phase, iters=settings[name]) for phase, name in zip(config.phases, names, strict=True))
    return replace(config, phases=tuple(phases))


def fit_to_epochs(config: TrainConfig, data: TrainingData) -> TrainConfig:
    """The same run with as many iterations as `epochs` passes over the text of its phase take, the last one begun."""
    tokens, each = config.run.epochs * data.phases[0].tokens, config.optim.batch_size * data.block_size
    return replace(config, phases=(replace(config.phases[0], iters=math.ceil(tokens / each)),))


def fit_to_minutes(config: TrainConfig, trainer: Trainer, started: float) -> TrainConfig:
    """The same run with as many iterations as fit `max_minutes`, which count from `started` (`time.monotonic()`).

    Phases keep the ratio of their iterations. Steps are tried out with `trainer`, whose model is no good afterwards.
    All ranks call it, and get the same. Raises `UserError` if hardly any iterations would fit.
    """
    seconds, total = 60 * config.run.max_minutes, sum(phase.iters for phase in config.phases)
    step, evaluation = _measure(trainer, TRIAL * seconds)
    left = SHARE * seconds - (time.monotonic() - started) - (1 + len(config.phases) + EVALUATIONS) * evaluation
    iters = from_rank_zero(left / (step + evaluation / config.run.eval_interval))
    phases = tuple(replace(phase, iters=math.floor(iters * phase.iters / total)) for phase in config.phases)
    if min(phase.iters for phase in phases) < LEAST:
        minutes = f"{config.run.max_minutes:g} minute{'s' * (config.run.max_minutes != 1)}"
        spent = f"{time.monotonic() - started:.0f} s are over, and a step takes {step:.2g} s here"
        raise UserError(f"`max_minutes`: {minutes} are too few: {spent}")
    return replace(config, phases=phases)


def _measure(trainer: Trainer, seconds: float) -> tuple[float, float]:
    """The time of a step and of an evaluation, in seconds, tried out for about so many."""
    begun = time.monotonic()
    with averaged_weights(trainer.model):
        trainer.validation_loss()
    evaluation = time.monotonic() - begun
    steps = 0
    while from_rank_zero(steps < 2 * WARM_UP or time.monotonic() - begun < seconds):
        if steps == WARM_UP:
            begun, seconds = time.monotonic(), seconds - evaluation
        trainer.train_step()  # ends with the loss on the CPU, so the device has done its work
        steps += 1
    return (time.monotonic() - begun) / (steps - WARM_UP), evaluation
