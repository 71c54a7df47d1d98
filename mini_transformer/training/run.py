"""A whole training run: from settings to a finished folder."""

import copy
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from mini_transformer.config import TrainConfig, check, with_flags
from mini_transformer.data.prepare import TrainingData, prepare_data
from mini_transformer.errors import UserError
from mini_transformer.files import is_full, replacing
from mini_transformer.model import pretrained
from mini_transformer.model.decoder import Decoder
from mini_transformer.runtime import (
    describe_device,
    deterministic_algorithms,
    is_launched,
    log,
    pick_device,
    pick_precision,
    rank,
    world_size,
)
from mini_transformer.settings import recorded_settings
from mini_transformer.training.announcement import announce
from mini_transformer.training.distillation import Distillation, read_teachers
from mini_transformer.training.distributed import check_equal, first_on_each_node, from_rank_zero, join, process_group
from mini_transformer.training.ensemble import with_own_teachers
from mini_transformer.training.events import check_tensorboard
from mini_transformer.training.fork import Fork
from mini_transformer.training.initialisation import Source, weights_fingerprint
from mini_transformer.training.losses import Loss, cross_entropy_sum
from mini_transformer.training.parallel import pick_parallel
from mini_transformer.training.run_folder import VALIDATION, Record, RunFolder, describe_environment, start_command
from mini_transformer.training.timing import fit_to_epochs, fit_to_minutes, recorded_iterations
from mini_transformer.training.trainer import Trainer


def train(config: TrainConfig, started: float | None = None) -> None:
    """Train as configured and leave the model in the run's folder; goes on where an earlier call was stopped.

    `started`: the time (`time.monotonic()`) from which `max_minutes` count, now if there is none.
    Raises `UserError` for wrong input before anything is written, `Stopped` when interrupted (the state is saved).
    """
    started = time.monotonic() if started is None else started
    check(config)
    if config.run.tensorboard:
        check_tensorboard()
    if config.optim.batch_size < world_size():
        raise UserError(f"`batch_size` {config.optim.batch_size}: is less than the {world_size()} processes")
    if any(path.is_dir() and path.resolve() == config.run.out_dir.resolve() for p in config.phases for path in p.data):
        raise UserError(f"`out_dir`: {config.run.out_dir} is the folder of the texts; choose another one")
    parts = with_own_teachers(config)
    device = pick_device(config.run.device, config.run.gpus)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    join()
    with first_on_each_node():
        prepared = [prepare_data(_shared(part)) for part in parts]  # the order of the batches is each one's own
    with process_group(device, config.run.rank_timeout, single=config.run.parallel == "fsdp"):
        for number, (part, data) in enumerate(zip(parts, prepared, strict=True), start=1):
            if len(parts) > 1:
                what = "The model" if part is parts[-1] else f"Teacher {number} of {len(parts) - 1}"
                log(f"\n{what}, in {part.run.out_dir}")
            _train(part, data, device, started)
            started = time.monotonic()  # of the next one's own minutes


def _shared(config: TrainConfig) -> TrainConfig:
    """The same, but on several ranks all tokens are in the cache: one of them makes them, and all map them."""
    return dataclasses.replace(config, text=dataclasses.replace(config.text, in_memory=0)) if is_launched() else config


def _train(config: TrainConfig, data: TrainingData, device: torch.device, started: float) -> None:
    precision = pick_precision(config.run.precision, device, config.model.n_embd)
    if data.block_size < config.model.block_size:
        log(f"The text is short: the block shrinks from {config.model.block_size} to {data.block_size} tokens")
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, block_size=data.block_size))
    source = Source.read(config.run.init_from) if config.run.init_from else None
    teachers = read_teachers(config.run.teacher, data.tokenizer, config.model.block_size, device)
    folder = RunFolder(config.run.out_dir, config.run.keep)
    if config.run.epochs:
        config = fit_to_epochs(config, data)
    if config.run.max_minutes:
        config = from_rank_zero(recorded_iterations(config, folder) if rank() == 0 else None)
    wanted = describe_run(config, data)
    fork = Fork(config, wanted) if config.run.fork else None
    if fork:
        config, folder, wanted = fork.config, fork.folder, fork.record
    check_equal("the text or a setting is another", wanted)
    with folder, stop_on_signal() as stop, _machine_errors(folder, device):
        record = from_rank_zero(folder.open(wanted, config.run.overwrite) if rank() == 0 else None)
        if record and "forked_from" in record:
            wanted["forked_from"] = record["forked_from"]
        if record and record.get("finished"):
            ways = f"`overwrite` trains it again, {start_command(config.run.out_dir)} starts from its weights"
            log(with_flags(f"{config.run.out_dir}: this run is finished; nothing to do ({ways})"))
            return
        _log_data(config, data, device, precision)
        torch.manual_seed(config.run.seed)
        model = Decoder(config.model.resolve(data.tokenizer.vocab_size)).to(device)
        if source:
            source.copy_to(model, data.tokenizer)
            source = None  # not to be kept in memory
        weight = config.optim.teacher_weight
        losses: list[Loss] = [Distillation(teacher, weight) for teacher in teachers]
        losses = losses or [cross_entropy_sum]
        parallel = pick_parallel(config.run.parallel, model.parameter_counts()[0], device)
        environment = describe_environment(device.type, precision, parallel)
        before = record.get("environment", {}) if record else environment
        changed = [f"{k} was {before.get(k)}, is {here}" for k, here in environment.items() if before.get(k) != here]
        if changed:
            log(f"Note: not the same bit for bit as without the interruption: {', '.join(changed)}")
        if config.run.max_minutes and record is None and not fork:
            trial = Trainer(config, data, copy.deepcopy(model), folder, precision, stop, parallel, losses)
            config = fit_to_minutes(config, trial, started)
            del trial
            wanted = describe_run(config, data)
        trainer = Trainer(config, data, model, folder, precision, stop, parallel, losses)
        announce(trainer, parallel)
        if rank() == 0:
            if record is None:
                folder.clear()
            folder.remove_temporary_files()
            folder.write_record(wanted, environment, finished=False)
            if fork and record is None:
                fork.begin()
            _write_model_files(config, data, model)
        with deterministic_algorithms(device):
            trainer.fit()
        if rank() == 0:
            folder.write_record(wanted, environment, finished=True)  # first: from here on nothing is needed to go on
            if not config.run.keep_checkpoints:
                folder.checkpoints.clear()
    log(f"\nThe best weights, of validation loss {trainer.progress.best_loss:.3f}, are in {config.run.out_dir}")


def describe_run(config: TrainConfig, data: TrainingData) -> Record:
    """What `run.json` records. Raises `UserError` if the recipe was another run's, and the texts are not that run's."""
    fingerprints = {phase.phase.name: phase.fingerprint for phase in data.phases}
    fingerprints |= {"validation": data.validation_fingerprint, "tokenizer": data.tokenizer.fingerprint[:32]}
    if config.run.init_from:
        fingerprints["init"] = weights_fingerprint(config.run.init_from)
    if config.run.teacher:
        fingerprints["teacher"] = " ".join(map(weights_fingerprint, config.run.teacher))
    for name, expected in config.fingerprints.items():
        if fingerprints.get(name) != expected:
            what = {"tokenizer": name, "init": "`init_from`", "teacher": "`teacher`"}.get(name, f"{name} text")
            raise UserError(f"`recipe`: it is the record of a run with another {what}; the same run needs the same one")
    return {"settings": recorded_settings(config), "fingerprints": fingerprints}


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C interrupts at once."""
    stop = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    in_main_thread = threading.current_thread() is threading.main_thread()  # the only one that may set handlers
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _machine_errors(folder: RunFolder, device: torch.device) -> Iterator[None]:
    """Report a lack of memory or of disk space in one line."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        advice = "set a smaller `micro_batch_size` (the result stays the same), or take a smaller model"
        raise UserError(f"out of memory on {describe_device(device)}: {advice}") from None
    except OSError as error:
        what, why = error.filename or folder.folder, "the disk is full" if is_full(error) else error.strerror
        whole = "; the last checkpoint is whole" if folder.checkpoints.paths() else ""
        raise UserError(f"{what}: cannot be written ({why}){whole}") from None


def _log_data(config: TrainConfig, data: TrainingData, device: torch.device, precision: torch.dtype) -> None:
    log(f"Device: {describe_device(device)}, {str(precision).removeprefix('torch.')}")
    for phase in data.phases:
        count = phase.documents
        log(f"Text, {phase.phase.name}: {phase.characters:,} characters in {count:,} document{'s' * (count > 1)}")
    size, seen = data.tokenizer.vocab_size, data.tokenizer.vocab_size - len(data.suppress_tokens)
    vocabulary = f"{size:,} tokens, {seen:,} of them in the text"
    log(f"Validation: {data.validation_characters:,} characters; vocabulary: {vocabulary}")
    log(f"Contamination: {data.contamination}")
    if rank() == 0:
        data.contamination.warn()


def _write_model_files(config: TrainConfig, data: TrainingData, model: Decoder) -> None:
    """Everything of the model's folder but the weights."""
    folder = config.run.out_dir
    phases = [{"name": p.name, "max_iters": p.iters, "lr": p.lr} for p in config.phases]
    kind = Path(config.text.tokenizer).name  # never a path of this machine
    metadata = {"tokenizer": kind, "dropout": config.model.dropout, "seed": config.run.seed, "phases": phases}
    pretrained.write_config(folder, model.config, data.tokenizer.eot_id, data.suppress_tokens, metadata)
    data.tokenizer.save(folder, model.config.block_size)
    with replacing(folder / VALIDATION) as temporary:
        lines = (f"{title.origin}\t{title.text}\n" for title in data.validation_titles)
        temporary.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
