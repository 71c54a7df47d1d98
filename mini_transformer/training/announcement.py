"""What is said before a run begins: the size of the model, the memory, the length, and for a long run the time."""

import shlex
import sys
import time

import torch

from mini_transformer.config import RunConfig, TrainConfig
from mini_transformer.recipes import load_recipe
from mini_transformer.runtime import describe_device, log, rank, world_size
from mini_transformer.training.metrics import duration
from mini_transformer.training.plan import flops_per_token, memory
from mini_transformer.training.trainer import Trainer

LONG = 6 * 3600.0  # seconds from which a run is announced as long
WORTH_TIMING = 1e15  # floating-point operations below which no device needs long
WORTH_NO_WARM_UP = 1e11  # of a pass on a CPU that is long enough without
SMALL = "fables-10min"  # the recipe that a long run on a CPU is pointed to
MORE_GPUS = "more GPUs or fewer iterations shorten that, and a run that is stopped goes on later"


def announce(trainer: Trainer, parallel: str) -> None:
    """Print the plan of a run. All ranks call it, since they measure the time together; rank 0 prints."""
    total, active = trainer.model.parameter_counts()
    log(f"Model: {total:,} parameters, {active:,} of them active for each token")
    log(f"Memory: {describe_memory(trainer, parallel)}")
    per_iteration = trainer.batch_size * trainer.block_size
    for phase, data in zip(trainer.config.phases, trainer.data.phases, strict=True):
        iters, tokens = phase.iters, phase.iters * per_iteration
        length = f"{iters:,} iteration{'s' * (iters > 1)} of {per_iteration:,} tokens"
        epochs = tokens * data.share / data.tokens
        log(f"Plan, {phase.name}: {length}: {amount(tokens)}, {epochs:,.{1 if epochs >= 1 else 3}f} epochs")
    seconds = expected_seconds(trainer)
    trainer.check_stop(together=True)
    if seconds is None:
        return
    log(f"Time: about {duration(seconds)} for the whole run on {describe_device(trainer.device)}")
    if seconds > LONG and rank() == 0:
        hint = MORE_GPUS if trainer.device.type == "cuda" else small_command(trainer.config)
        print(f"Warning: this run will take about {duration(seconds)}; {hint}", file=sys.stderr)


def small_command(config: TrainConfig) -> str:
    """A command that trains a small model on the same texts, to copy."""
    words: list[object] = ["python", "train.py"]
    for phase in config.phases:
        words.append("--data" if len(config.phases) == 1 else f"--{phase.name}-data")
        weights = [f":{weight:g}" for weight in phase.weights] or [""] * len(phase.data)
        words += [f"{path}{weight}" for path, weight in zip(phase.data, weights, strict=True)]
    words += ["--recipe", SMALL]
    if config.run.out_dir != RunConfig.out_dir:
        words += ["--out-dir", config.run.out_dir]
    about = load_recipe(SMALL).about
    french = "; a French text learns more with --recipe finetune" if len(config.phases) == 1 else ""
    return f"{about}: {shlex.join(map(str, words))}{french}"


def describe_memory(trainer: Trainer, parallel: str) -> str:
    """The memory of a rank in words, in one unit."""
    shape, device = trainer.model.config, trainer.device.type
    size, micro_batches = trainer.micro_batch_size, len(trainer.micro_batches)
    shares = trainer.passes.shares(size, trainer.block_size)
    need = memory(shape, size, micro_batches, world_size(), parallel, trainer.precision, device, shares)
    unit, name = (1e9, "GB") if need.total >= 1e9 else (1e6, "MB")
    parts = ", ".join(f"{key.replace('_', ' ')} {size / unit:.2g}" for key, size in vars(need).items() if size)
    where = f" in each of {world_size()} processes ({parallel.upper()})" if world_size() > 1 else ""
    return f"about {need.total / unit:.3g} {name}{where}: {parts}"


def amount(tokens: int) -> str:
    """A number of tokens for people: 4,096 tokens, 8.2 million tokens, 1.3 billion tokens."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if tokens >= size:
            return f"{tokens / size:,.1f} {word} tokens"
    return f"{tokens:,} tokens"


def expected_seconds(trainer: Trainer) -> float | None:
    """The time of a whole run, evaluations included (a third of a step for each batch); None for a short one."""
    run, tokens = trainer.config.run, trainer.batch_size * trainer.block_size
    iterations = sum(phase.iters for phase in trainer.config.phases)
    if flops_per_token(trainer.model.config) * tokens * iterations < WORTH_TIMING:
        return None
    batches = min(run.eval_iters, len(trainer.data.validation) / tokens)
    evaluations = iterations / run.eval_interval + 1
    return seconds_per_step(trainer) * (iterations + evaluations * batches / 3)


def seconds_per_step(trainer: Trainer) -> float:
    """The time of a step, judged by a micro-batch or two, on all ranks alike. It changes nothing in the run.

    On a CPU, by one row for each thread, at once: a large model would take minutes for a whole micro-batch.
    """
    size, block = trainer.micro_batch_size, trainer.block_size
    if trainer.device.type == "cpu":
        size = min(size, trainer.passes.threads)
    flops = flops_per_token(trainer.model.config) * size * block
    no_warm_up = trainer.device.type == "cpu" and flops > WORTH_NO_WARM_UP
    ids = torch.randint(trainer.model.config.vocab_size, (size, block), generator=torch.Generator().manual_seed(0))
    micro_batches = len(trainer.micro_batches)
    exchanging = 1 if world_size() > 1 else micro_batches  # several ranks exchange gradients after the last one only
    seconds = 0.0
    for times, last in ((0, True), (micro_batches - exchanging, False), (exchanging, True)):  # the first warms up
        if not times and (not last or no_warm_up):
            continue
        started = time.monotonic()
        trainer.passes.backward((0,), range(size), ids, ids, 1, last)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        seconds += times * (time.monotonic() - started)
    trainer.passes.zero_grad()
    return seconds * trainer.micro_batch_size / size
