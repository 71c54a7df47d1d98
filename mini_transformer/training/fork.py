"""A fork: an unfinished run goes on in another folder under other settings, and stays as it is in its own."""

import shutil
from dataclasses import replace
from pathlib import Path

from mini_transformer.config import MAX_ITERS, TrainConfig
from mini_transformer.errors import UserError
from mini_transformer.files import publish, replacing
from mini_transformer.settings import changed_settings
from mini_transformer.training.checkpoint import Progress
from mini_transformer.training.run_folder import METRICS, RUN, Record, RunFolder, fixed_difference, start_command


class Fork:
    """The fork that `out_dir` (the run) and `fork` (where it goes on) mean. Nothing is written before `begin`."""

    def __init__(self, config: TrainConfig, wanted: Record) -> None:
        """`wanted`: the record of the run as it goes on. Raises `UserError` if there is nothing to go on with so."""
        there, here = config.run.out_dir, config.run.fork
        assert here is not None
        if here.resolve() == there.resolve():
            raise UserError(f"`fork`: {here} is the folder of the run itself; choose another `fork`")
        self.source, self.folder = RunFolder(there), RunFolder(here, config.run.keep, "fork")
        self.config = replace(config, run=replace(config.run, out_dir=here))
        otherwise = f"{start_command(there, here)} starts a new run from its weights"
        if not (there / RUN).is_file():
            raise UserError(f"`fork`: {there} (`out_dir`) holds no run to go on with")
        record = self.source.read_record() or {}
        if difference := fixed_difference(record, wanted):
            why = "a fork keeps the model's shape, the tokenizer and the texts"
            raise UserError(f"`fork`: {there} holds a run with other settings ({difference}); {why}; {otherwise}")
        origin: Record = {"settings": changed_settings(record["settings"], wanted["settings"])}
        self.record: Record = wanted | {"forked_from": origin}
        self.checkpoint: Path | None = None  # to begin with; none: it has begun already
        has_begun = (here / RUN).exists() and self.folder.checkpoints.paths()
        if config.run.overwrite or not has_begun:
            if record.get("finished"):
                raise UserError(f"`fork`: the run in {there} is finished; {otherwise}")
            if not self.source.checkpoints.paths():
                raise UserError(f"`fork`: {there} holds no checkpoint yet; {otherwise}")
            self.checkpoint, progress = self.source.checkpoints.newest([MAX_ITERS] * len(config.phases))
            self._check_progress(progress, record)
            origin |= {"phase": self.config.phases[progress.phase].name, "iteration": progress.iteration}

    def _check_progress(self, progress: Progress, record: Record) -> None:
        """Refuse fewer iterations than are done, and others of a phase that is over."""
        for number, phase in enumerate(self.config.phases[: progress.phase + 1]):
            name = f"max_iters{self.config.suffix(phase)}"
            if number < progress.phase and phase.iters != record["settings"].get(name):
                raise UserError(
                    f"`{name}`: phase {phase.name} is over, after {record['settings'].get(name)} iterations"
                )
            if number == progress.phase and phase.iters < progress.iteration:
                raise UserError(f"`{name}`: {phase.iters}, but the run is at iteration {progress.iteration} already")

    def begin(self) -> None:
        """Put the newest whole checkpoint and its metrics into the new folder, which has the new record but no more."""
        assert self.checkpoint is not None
        with replacing(self.folder.folder / METRICS) as temporary:
            shutil.copyfile(self.source.folder / METRICS, temporary)  # what is later than the checkpoint is dropped
        copy_checkpoint(self.checkpoint, self.folder.checkpoints.folder)


def copy_checkpoint(path: Path, folder: Path) -> None:
    """Copy a checkpoint into another folder of checkpoints, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        temporary = folder / f".{path.name}.temporary"
        shutil.copytree(path, temporary)
        publish(temporary, folder / path.name)
    else:
        with replacing(folder / path.name) as file:
            shutil.copyfile(path, file)
