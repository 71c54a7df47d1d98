"""The one trainer: phases follow each other, one loop runs them all, on one process or on many.

A run is a pure function of its settings and texts: the batch of each iteration and the dropout of each of its rows
follow from the seed and their numbers alone. So a run that was stopped goes on as if it had not been, and does the same
on any number of ranks. Every rank goes through the same lines; what only rank 0 does is said beside it.
"""

import math
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from mini_transformer.config import Phase, TrainConfig
from mini_transformer.data.prepare import TrainingData
from mini_transformer.data.stream import rows_of
from mini_transformer.errors import UserError
from mini_transformer.generation.engine import Engine
from mini_transformer.model import pretrained
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.dropout import set_dropout
from mini_transformer.recipes import expected_bits
from mini_transformer.runtime import log, rank, world_size
from mini_transformer.training.averaging import averaged_weights
from mini_transformer.training.calibration import calibrate
from mini_transformer.training.checkpoint import Progress, State
from mini_transformer.training.distributed import any_rank, from_rank_zero, launcher_is_gone, sum_over_ranks
from mini_transformer.training.losses import Loss, cross_entropy_sum
from mini_transformer.training.metrics import MetricsLogger
from mini_transformer.training.micro_batches import fitting_rows, prepare
from mini_transformer.training.optimizer import make_optimizer, update_router_bias
from mini_transformer.training.parallel import clip_gradients, gather, parallelise, snapshot
from mini_transformer.training.passes import Passes
from mini_transformer.training.results import write_results, write_text
from mini_transformer.training.run_folder import METRICS, RunFolder
from mini_transformer.training.schedule import learning_rate
from mini_transformer.training.speed import Speed
from mini_transformer.training.validation import is_quick, validate

LOG_INTERVAL = 10  # iterations between lines of metrics.jsonl
SAMPLE_TOKENS, FINAL_TOKENS = 160, 600  # written on the way, and at the end (the length of a fable)
PATIENCE = 5  # evaluations without improvement after which overfitting is reported


class Stopped(Exception):
    """The user (or the system) asked the run to stop; its state is saved, unless an argument says why there is none."""


class Trainer:
    """Trains a model through all phases of a run and leaves the best weights in its folder."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        model: Decoder,
        folder: RunFolder,
        precision: torch.dtype,
        stop: threading.Event,
        parallel: str = "none",
        losses: Sequence[Loss] = (cross_entropy_sum,),
    ) -> None:
        self.config, self.data, self.model, self.folder = config, data, model, folder
        self.precision, self.stop, self.device = precision, stop, next(model.parameters()).device
        self.block_size, self.batch_size = model.config.block_size, config.optim.batch_size
        self.rows = rows_of(rank(), world_size(), self.batch_size)  # of each batch, that are this rank's
        self.parallel = parallelise(model, parallel)
        self.passes = Passes(model, self.parallel, precision, *losses)
        rows = config.run.micro_batch_size or fitting_rows(self.passes, self.batch_size, parallel)
        if self.parallel is not self.model:
            self.passes.warm_up(self.block_size)
        self.micro_batches = prepare(self.passes, config, len(self.rows), rows)
        self.micro_batch_size = max(part.stop - part.start for part in self.micro_batches)
        self.validation_batch_size = rows
        self.optimizer = make_optimizer(model, config.optim, precision)
        self.speed = Speed(model.config, self.batch_size * self.block_size, self.device, precision)
        self.phases = [(phase.name, phase.iters) for phase in config.phases]
        self.progress = Progress()
        self.best, self.best_on_disk = dict[str, Tensor](), True  # the best weights; under FSDP a rank's parts

    @property
    def phase(self) -> Phase:
        """The phase that is running."""
        return self.config.phases[self.progress.phase]

    def fit(self) -> None:
        """Run what is left of all phases. Raises `Stopped` when asked to stop, `UserError` if the loss diverges."""
        self._resume()
        at = self.progress.phase, self.progress.iteration
        evaluated = self.progress.evaluated == at[1]
        self.metrics = MetricsLogger(self.folder.folder / METRICS, self.phases, at, evaluated)
        if self.config.run.tensorboard:
            self.metrics.add_events()
        saved = False
        try:
            for phase in range(self.progress.phase, len(self.config.phases)):
                if phase != self.progress.phase:
                    self._begin_phase(phase)
                self._run_phase()
            saved = True  # at the end of the last phase
            self._calibrate()
            write_text(self.folder, self.sample_text(FINAL_TOKENS))
            self._write_results()
        except (Stopped, UserError, OSError) as error:  # on all ranks: what they are writing will be whole
            if isinstance(error, Stopped) and not (error.args or saved):
                self._save()
            self.folder.checkpoints.wait()
            raise
        finally:
            self.metrics.close()

    def _run_phase(self) -> None:
        run, progress, iters = self.config.run, self.progress, self.phase.iters
        self.metrics.begin(self.phase.name, progress.iteration, iters)
        self.speed.begin()
        while True:
            i = progress.iteration

            # once in a while: save what resuming needs, before anything that may fail (all ranks, rank 0 decides)
            may_save = 0 < i < iters and i % run.checkpoint_interval == 0
            if may_save and from_rank_zero(self.folder.checkpoints.is_due()):
                self._save()

            # once in a while, and at the end: evaluate on the validation text, keep the best weights (all ranks)
            due = i % run.eval_interval == 0 and (i > 0 or is_quick(self.model, len(self.data.validation)))
            if (due or i == iters) and i != progress.evaluated:
                self._evaluate()

            # once in a while: show how the model writes (all ranks, the text of rank 0 is shown)
            if run.sample_interval and i % run.sample_interval == 0 and 0 < i < iters:
                self.metrics.sample(self.sample_text(SAMPLE_TOKENS), self.phase.name, i)

            if i == iters or 0 < run.early_stop <= self._evaluations_since_best():
                self._save()  # whatever it takes
                self.folder.checkpoints.wait()
                if summary := self.speed.summary():
                    self.metrics.log(f"{self.phase.name}: {summary}")
                break

            # one step of the optimizer (all ranks)
            started = time.monotonic()
            values = self.train_step()
            tokens_per_second = self.speed.add(time.monotonic() - started)
            progress.iteration += 1
            progress.losses.append(values["train_loss"])

            # the bar, and once in a while a line of metrics (rank 0)
            self.metrics.advance(values["train_loss"], tokens_per_second)
            if progress.iteration % LOG_INTERVAL == 0 or progress.iteration == iters:
                values["train_loss"] = statistics.fmean(progress.losses[-LOG_INTERVAL:])
                self._write_metrics(**values, **self.speed.take())

    def train_step(self) -> dict[str, Any]:
        """One step of the optimizer on one batch; returns its metrics. If it raises, no weight has changed."""
        phase, optim, i = self.phase, self.config.optim, self.progress.iteration
        seed = (self.config.run.seed, self.progress.phase, i)
        batches = self.data.phases[self.progress.phase].batches_at(i / phase.iters)
        self.model.train()
        set_dropout(self.model, optim.dropout_start, i / phase.iters)
        self.passes.zero_grad()
        inputs_bt, targets_bt = batches.batch(i, self.batch_size, self.block_size, rank(), world_size())
        count = self.batch_size * self.block_size  # tokens that all ranks predict
        total = torch.zeros((), device=self.device)
        for part in self.micro_batches:
            self.check_stop()
            last = part is self.micro_batches[-1]
            total += self.passes.backward(seed, self.rows[part], inputs_bt[part], targets_bt[part], count, last)
        # one exchange for all that the ranks must agree on; gradients, and so their norm, are equal on all of them
        loss, stopping = sum_over_ranks(torch.stack([total, total.new_tensor(self._is_stopping())])).tolist()
        if stopping:
            self._raise_stopped()
        norm = clip_gradients(self.model, optim.grad_clip).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"the loss is {loss}, the gradient norm {norm}; the weights were not changed"
            raise UserError(f"iteration {i} of phase {phase.name}: {what}. Try a lower `lr`, or `precision` float32")
        rate = learning_rate(i, phase.iters, phase.lr, optim.warmup_iters)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        values: dict[str, Any] = {"train_loss": loss, "learning_rate": rate, "gradient_norm": norm}
        if load := update_router_bias(self.model, optim.balance_rate):
            values |= {"max_expert_load": max(map(max, load)), "expert_load": load}
        return values

    def validation_loss(self) -> float:
        """The loss of the model as it is on the validation text, in nats per token (all ranks)."""
        size = self.validation_batch_size
        max_batches = math.ceil(self.config.run.eval_iters * self.batch_size / size)
        return validate(self._validation_loss_sum, self.data.validation, size, self.block_size, max_batches)

    def _validation_loss_sum(self, inputs_bt: Tensor, targets_bt: Tensor) -> tuple[Tensor, int]:
        self.check_stop()
        return self.passes.loss_sum(self.model, inputs_bt, targets_bt, cross_entropy_sum)

    def check_stop(self, together: bool = False) -> None:
        """Raises `Stopped` if asked to, or left alone by the launcher: on all ranks, which must look `together`."""
        if (together or world_size() == 1) and any_rank(self._is_stopping()):
            self._raise_stopped()

    def _is_stopping(self) -> bool:
        return self.stop.is_set() or launcher_is_gone()

    def _raise_stopped(self) -> NoReturn:
        raise Stopped(*[] if self.progress.phase or self.progress.iteration else ["before the first step"])

    def _evaluate(self) -> None:
        """Measure the validation text; keep the weights if they are the best so far."""
        run, progress, i = self.config.run, self.progress, self.progress.iteration
        with averaged_weights(self.model):
            loss = self.validation_loss()
            if not math.isfinite(loss):
                raise UserError(f"iteration {i} of phase {self.phase.name}: the validation loss is {loss}")
            is_best = loss < progress.best_loss
            if is_best:
                progress.best_loss, progress.best_step = loss, (progress.phase, i)
                self.best, self.best_on_disk = snapshot(self.model), False
        if is_best and (i == 0 or from_rank_zero(self.folder.checkpoints.is_due())):
            with self.folder.checkpoints.timed():
                self._write_best()
        bits = loss * self.data.tokens_per_character / math.log(2)
        training = f"training {statistics.fmean(progress.losses):.3f}, " if progress.losses else ""
        progress.losses, progress.evaluated = [], i
        known = expected_bits(self.config.curve, i / self.phase.iters) if len(self.phases) == 1 else None
        recipes = "" if known is None else f"; the recipe's run had {known:.3f}"
        self.metrics.log(
            f"{self.phase.name} {i}/{self.phase.iters}: {training}validation {loss:.3f} "
            f"({bits:.3f} bits per character{', best' if is_best else ''}{recipes}){self.metrics.remaining(i)}"
        )
        self._write_metrics(val_loss=loss, bits_per_character=bits)
        stale = self._evaluations_since_best()
        if stale >= PATIENCE and not progress.overfitting_warned:
            progress.overfitting_warned = True
            since = i - stale * run.eval_interval
            advice = "the weights of then are kept. More text, more dropout or fewer iterations would help"
            self.metrics.log(f"  overfitting: validation has not improved since iteration {since}; {advice}")

    def _calibrate(self) -> None:
        """Take the best weights, and fit how sure of themselves they are to the validation text."""
        with averaged_weights(self.model):
            factor, loss = calibrate(self.model, self.best, self.progress.best_loss, self.validation_loss)
        if factor != 1.0:
            self.progress.best_loss, self.best, self.best_on_disk = loss, snapshot(self.model), False
            self._write_metrics(temperature=1 / factor, calibrated_val_loss=loss)
            self.metrics.log(f"Calibrated: logits divided by {1 / factor:.2f}, validation {loss:.3f}")

    def _evaluations_since_best(self) -> int:
        """How many evaluations of this phase did not improve on the best one."""
        progress = self.progress
        best = progress.best_step[1] if progress.best_step[0] == progress.phase else 0
        return (progress.iteration - best) // self.config.run.eval_interval

    def _write_metrics(self, **values: Any) -> None:
        self.metrics.write(phase=self.phase.name, iteration=self.progress.iteration, **values)

    def sample_text(self, tokens: int) -> str:
        """A text by the model as it is now."""
        pieces = []
        with averaged_weights(self.model):
            engine = Engine(self.model, self.data.tokenizer, self.data.suppress_tokens)
            for piece in engine.stream(max_new_tokens=tokens, seed=self.config.run.seed):
                self.check_stop()
                pieces.append(piece)
        return "".join(pieces)

    def _resume(self) -> None:
        """Take up the newest checkpoint, if there is one."""
        state = State(self.model, self.optimizer, self.best, self.progress)
        if self.folder.checkpoints.load(state, [iters for _, iters in self.phases]):
            self.progress, self.best, self.best_on_disk = state.progress, state.best, False  # it may hold later ones
            log(f"Resuming from the checkpoint at {self.phase.name} {self.progress.iteration}")

    def _save(self) -> None:
        """Write the best weights and a checkpoint (all ranks)."""
        state = State(self.model, self.optimizer, self.best, self.progress)
        with self.folder.checkpoints.timed():
            self._write_best()
            self.folder.checkpoints.save(state, self.phase.name)

    def _write_best(self) -> None:
        if not self.best_on_disk and self.best:
            weights = pretrained.export_weights(gather(self.best))
            if rank() == 0:
                pretrained.write_weights(self.folder.folder, weights)
            self.best_on_disk = True

    def _begin_phase(self, phase: int) -> None:
        """Go on to a phase from the best weights so far, with a fresh optimizer."""
        self.model.load_state_dict(self.best)
        self.optimizer = make_optimizer(self.model, self.config.optim, self.precision)
        self.progress = Progress(phase, 0, self.progress.best_loss, self.progress.best_step)
        self._write_results()

    def _write_results(self) -> None:
        """The best weights, as `transformers`, PyTorch and llama.cpp have them, and the curve."""
        self._write_best()
        write_results(self.folder, self.model, gather(self.best), self.data, self.phases)
