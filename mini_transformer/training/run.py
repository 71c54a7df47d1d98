"""A whole training run: from settings to a finished folder."""

import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mini_transformer.config import TrainConfig, check
from mini_transformer.errors import UserError
from mini_transformer.files import replacing
from mini_transformer.model import pretrained
from mini_transformer.model.decoder import Decoder
from mini_transformer.runtime import describe_device, deterministic_algorithms, pick_device, pick_precision
from mini_transformer.training.checkpoint import VALIDATION, RunFolder, describe_environment, settings
from mini_transformer.training.optimizer import balance
from mini_transformer.training.phases import Material, read_material
from mini_transformer.training.report import duration, tell
from mini_transformer.training.trainer import Trainer, stop_on_signal

LONG = 6 * 3600.0  # seconds from which a run is announced as long
WORTH_TIMING = 1e15  # floating-point operations below which no device needs long


def train(config: TrainConfig) -> None:
    """Train as configured and leave the model in the run's folder; goes on where an earlier call was stopped.

    Raises `UserError` for wrong input before anything is written, `Stopped` when interrupted (the state is saved).
    """
    check(config)
    device = pick_device(config.run.device, config.run.gpus)
    precision = pick_precision(config.run.precision, device)
    material = read_material(config)
    if material.block_size < config.model.block_size:
        tell(f"The text is short: the block shrinks from {config.model.block_size} to {material.block_size} tokens")
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, block_size=material.block_size))
    folder = RunFolder(config.run.out_dir)
    wanted = settings(config, material)
    record = folder.open(wanted, config.run.overwrite)
    if record is not None and record.get("finished"):
        tell(f"{config.run.out_dir}: this run is finished; nothing to do (--overwrite trains it anew)")
        return
    environment = describe_environment(device.type, precision)
    if record is not None and record.get("environment") != environment:
        tell(f"Note: begun as {record.get('environment')}, going on as {environment}: not the same bit for bit")
    _introduce(config, material, device, precision)

    with stop_on_signal() as stop, _errors_of_the_machine(config, device):
        torch.manual_seed(config.run.seed)
        model = Decoder(config.model.resolve(material.tokenizer.vocab_size)).to(device)
        total, active = model.parameter_counts()
        tell(f"Model: {total:,} parameters, {active:,} of them at work on each token")
        trainer = Trainer(config, material, model, folder, precision, stop)
        _warn_if_long(trainer, active)
        if record is None:
            folder.clear()
        folder.drop_drafts()
        folder.record(wanted, environment, finished=False)
        _write_texts(config, material, model)
        with deterministic_algorithms(device):
            trainer.fit()
    folder.record(wanted, environment, finished=True)
    tell(f"\nThe best weights, of validation loss {trainer.state.best_loss:.3f}, are in {config.run.out_dir}")


@contextmanager
def _errors_of_the_machine(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Tell a want of memory or of disk in one line."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(
            f"out of memory on {describe_device(device)}: set a smaller `micro_batch_size` (same result), "
            "or take a smaller model"
        ) from None
    except OSError as error:
        what = error.filename or config.run.out_dir
        raise UserError(f"{what}: cannot be written ({error.strerror}); the last checkpoint stands") from None


def _introduce(config: TrainConfig, material: Material, device: torch.device, precision: torch.dtype) -> None:
    tell(f"Device: {describe_device(device)}, {str(precision).removeprefix('torch.')}")
    for text in material.phases:
        count = text.documents
        tell(f"Text, {text.phase.name}: {text.characters:,} characters in {count:,} document{'s' * (count > 1)}")
    tell(
        f"Validation: {material.validation_characters:,} characters; "
        f"vocabulary: {material.tokenizer.vocab_size} tokens, "
        f"{material.tokenizer.vocab_size - len(material.unseen)} of them in the text"
    )
    tell(f"Overlap: {material.overlap}")
    material.overlap.warn()


def _write_texts(config: TrainConfig, material: Material, model: Decoder) -> None:
    """Everything of the model's folder but the weights."""
    phases = [{"name": p.name, "max_iters": p.iters, "lr": p.lr} for p in config.phases]
    kind = Path(config.text.tokenizer).name  # never a place on this machine
    facts = {"tokenizer": kind, "dropout": config.model.dropout, "seed": config.run.seed, "phases": phases}
    pretrained.write_config(config.run.out_dir, model.config, material.tokenizer.eot_id, material.unseen, facts)
    material.tokenizer.save(config.run.out_dir, model.config.block_size)
    with replacing(config.run.out_dir / VALIDATION) as temporary:
        lines = (f"{document.origin}\t{document.text}\n" for document in material.validation_titles)
        temporary.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


def _warn_if_long(trainer: Trainer, active_parameters: int) -> None:
    """Say before the start how long a big run will take on this device, and what would be quicker."""
    tokens = trainer.config.optim.batch_size * trainer.model.config.block_size
    iterations = sum(phase.iters for phase in trainer.config.phases)
    if 6 * active_parameters * tokens * iterations < WORTH_TIMING:
        return
    seconds = estimate_seconds(trainer)
    if seconds > LONG:
        print(
            f"Warning: {iterations:,} iterations of this model will take about {duration(seconds)} on "
            f"{describe_device(trainer.device)}; --preset laptop gives a first result in under an hour",
            file=sys.stderr,
        )


def estimate_seconds(trainer: Trainer) -> float:
    """The time that all iterations will take, judged by one forward and backward pass of one micro-batch."""
    block = torch.zeros((trainer.micro_batch_size, trainer.model.config.block_size), dtype=torch.int64)
    seconds = 0.0
    for _ in range(2):  # the first one warms up
        started = time.monotonic()
        trainer.loss_sum(block, block).backward()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        seconds = time.monotonic() - started
    trainer.model.zero_grad(set_to_none=True)
    balance(trainer.model, 0.0)
    passes = trainer.config.optim.batch_size / trainer.micro_batch_size
    return seconds * passes * sum(phase.iters for phase in trainer.config.phases)
