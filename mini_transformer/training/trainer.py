"""The one trainer: phases follow each other, one loop runs them all.

A run is a pure function of its settings and texts: the order of the batches and the dropout of each iteration follow
from the seed and the iteration's number alone, so a run that was stopped goes on as if nothing had been.
"""

import math
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import numpy as np
import torch
from torch.nn import functional as F

from mini_transformer.config import SamplingConfig, TrainConfig
from mini_transformer.data.batches import validation_batches
from mini_transformer.errors import UserError
from mini_transformer.files import replacing
from mini_transformer.generation.engine import Engine
from mini_transformer.model import pretrained
from mini_transformer.model.decoder import Decoder
from mini_transformer.training.checkpoint import CURVE, METRICS, STATE_DICT, TEXT, RunFolder, State, save_tensors
from mini_transformer.training.optimizer import balance, make_optimizer
from mini_transformer.training.phases import Material
from mini_transformer.training.report import Report, draw_loss_curve, tell
from mini_transformer.training.schedule import learning_rate

LOG_INTERVAL = 10  # iterations between lines of metrics.jsonl
SAMPLE, FINAL_TEXT = 160, 600  # tokens that are written on the way, and at the end (a fable's length)
PATIENCE = 5  # evaluations without a gain after which overfitting is said


class Stopped(Exception):
    """The user (or the system) asked the run to stop; its state is saved."""


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C interrupts at once."""
    wanted = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        if wanted.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        wanted.set()

    if threading.current_thread() is not threading.main_thread():
        yield wanted
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wanted
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Trainer:
    """Trains a model through all phases of a run and leaves the best weights in its folder."""

    def __init__(
        self,
        config: TrainConfig,
        material: Material,
        model: Decoder,
        folder: RunFolder,
        precision: torch.dtype,
        stop: threading.Event,
    ) -> None:
        self.config, self.material, self.model, self.folder = config, material, model, folder
        self.device = next(model.parameters()).device
        self.precision = precision
        self.stop = stop
        self.tokens_per_character = (len(material.validation) - 1) / material.validation_characters
        self.micro_batch_size = config.run.micro_batch_size or self._micro_batch_size()
        self.optimizer = make_optimizer(model, config.optim)
        self.state = State(0, 0, {}, {}, math.inf, (0, 0), {}, 0, [], -1)
        self.best_on_disk = True
        self.said_overfitting = False
        self.resumed_at = (0, 0)

    def _micro_batch_size(self) -> int:
        """On a CPU, as many blocks as its caches and memory like; elsewhere the whole batch."""
        if self.device.type != "cpu":
            return self.config.optim.batch_size
        return max(1, min(self.config.optim.batch_size, 4096 // self.model.config.block_size))

    # The run

    def fit(self) -> None:
        """Run what is left of all phases. Raises `Stopped` when asked to stop, `UserError` if the loss diverges."""
        self._resume()
        self.report = Report(self.folder.folder / METRICS, self.state.metrics_size)
        try:
            for phase in range(self.state.phase, len(self.config.phases)):
                if phase != self.state.phase:
                    self._next_phase(phase)
                self._run_phase()
            self._finish()
        except Stopped:
            self._save(always=True)
            raise
        finally:
            self.report.close()

    def _run_phase(self) -> None:
        phase = self.config.phases[self.state.phase]
        run = self.config.run
        self.report.begin(phase.name, self.state.iteration, phase.iters)
        seconds: list[float] = []  # of the iterations since the last line of metrics
        while True:
            i = self.state.iteration
            if i % run.checkpoint_interval == 0 and i > 0 and (self.state.phase, i) != self.resumed_at:
                self._save()
            if (i % run.eval_interval == 0 or i == phase.iters) and i != self.state.evaluated:
                self._evaluate()
            if run.sample_interval and i % run.sample_interval == 0 and 0 < i < phase.iters:
                self._sample()
            if i == phase.iters:
                break
            started = time.monotonic()
            values = self._iterate()
            seconds.append(time.monotonic() - started)
            self.state.iteration += 1
            self.state.losses.append(values["train_loss"])
            tokens = self.config.optim.batch_size * self.model.config.block_size
            self.report.advance(values["train_loss"], tokens / seconds[-1])
            if self.state.iteration % LOG_INTERVAL == 0 or self.state.iteration == phase.iters:
                values["train_loss"] = statistics.fmean(self.state.losses[-LOG_INTERVAL:])
                speed = round(tokens / statistics.fmean(seconds))
                self.report.metric(phase=phase.name, iteration=self.state.iteration, **values, tokens_per_second=speed)
                seconds = []

    def _iterate(self) -> dict[str, float]:
        """One step of the optimizer on one batch. Nothing has changed yet if it raises."""
        phase, text = self.config.phases[self.state.phase], self.material.phases[self.state.phase]
        optim, i = self.config.optim, self.state.iteration
        seeds = np.random.SeedSequence([self.config.run.seed, self.state.phase, i])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        inputs, targets = text.stream.batch(i, optim.batch_size, self.model.config.block_size)
        loss = torch.zeros((), device=self.device)
        for rows in range(0, optim.batch_size, self.micro_batch_size):
            self._check_stop()
            part = slice(rows, rows + self.micro_batch_size)
            share = self.loss_sum(inputs[part], targets[part]) / targets.numel()
            share.backward()
            loss += share.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), optim.grad_clip)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise UserError(
                f"iteration {i} of phase {phase.name}: the loss is {loss.item()}, the gradient {norm.item()}; "
                "the weights were not changed. Try a lower --lr, or --precision float32"
            )
        rate = learning_rate(i, phase.iters, phase.lr, optim.warmup_iters)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        busiest = balance(self.model, optim.balance_rate)
        return {
            "train_loss": loss.item(),
            "learning_rate": rate,
            "gradient_norm": norm.item(),
            "max_expert_load": busiest,
        }

    def loss_sum(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The sum of the cross-entropies of a batch (B, T), in nats."""
        bfloat16 = self.precision is torch.bfloat16
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            logits = self.model(inputs.to(self.device))
        return F.cross_entropy(logits.float().flatten(0, 1), targets.to(self.device).flatten(), reduction="sum")

    # Looking up from the work

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopped

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Measure the validation text; keep the weights if they are the best so far."""
        self.model.eval()
        phase, run, state = self.config.phases[self.state.phase], self.config.run, self.state
        total, tokens = 0.0, 0
        size = min(self.micro_batch_size, self.config.optim.batch_size)
        most = math.ceil(run.eval_iters * self.config.optim.batch_size / size)
        for inputs, targets in validation_batches(self.material.validation, size, self.model.config.block_size, most):
            self._check_stop()
            total += self.loss_sum(inputs, targets).item()
            tokens += targets.numel()
        loss = total / tokens
        bits = loss * self.tokens_per_character / math.log(2)
        here = (state.phase, state.iteration)
        if not math.isfinite(loss):
            raise UserError(f"iteration {state.iteration} of phase {phase.name}: the validation loss is {loss}")
        best = loss < state.best_loss
        if best:
            state.best_loss, state.best_where = loss, here
            state.best = pretrained.export_weights(self.model)
            self.best_on_disk = False
            if state.iteration == 0 or self.folder.save_is_due():
                self._write_best()
        training = f"training {statistics.fmean(state.losses):.3f}, " if state.losses else ""
        state.losses, state.evaluated = [], state.iteration
        self.report.say(
            f"{phase.name} {state.iteration}/{phase.iters}: {training}validation {loss:.3f} "
            f"({bits:.3f} bits per character{', best' if best else ''}){self.report.remaining(state.iteration)}"
        )
        self.report.metric(phase=phase.name, iteration=state.iteration, val_loss=loss, bits_per_character=bits)
        best_here = state.best_where[1] if state.best_where[0] == state.phase else 0
        late = state.iteration - best_here >= PATIENCE * run.eval_interval
        if late and not self.said_overfitting:
            self.said_overfitting = True
            self.report.say(
                f"  overfitting: validation has not gained since iteration {best_here}; the weights of then "
                "are kept. More text, more --dropout or fewer --max-iters would help"
            )

    def _sample(self) -> None:
        """Show how the model writes now."""
        text = self._written(SAMPLE)
        self.report.say("\n".join(f"    | {line}" for line in text.strip().splitlines()))

    def _written(self, tokens: int) -> str:
        """A text by the model as it is now."""
        self.model.eval()
        pieces = []
        writer = Engine(self.model, self.material.tokenizer, self.material.unseen)
        for piece in writer.write("", tokens, SamplingConfig(), seed=self.config.run.seed):
            self._check_stop()
            pieces.append(piece)
        return "".join(pieces)

    # Keeping

    def _resume(self) -> None:
        state = self.folder.load()
        if state is None:
            return
        self.state = state
        self.resumed_at = (state.phase, state.iteration)
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.best_on_disk = False  # the killed run may have written later ones
        where = f"{self.config.phases[state.phase].name} {state.iteration}"
        tell(f"Continuing from the checkpoint at {where}")

    def _save(self, always: bool = False) -> None:
        if not (always or self.folder.save_is_due()):
            return
        self._write_best()
        self.state.model = self.model.state_dict()
        self.state.optimizer = self.optimizer.state_dict()
        self.state.metrics_size = self.report.metrics_size
        self.folder.save(self.state, self.config.phases[self.state.phase].name)
        self.state.model, self.state.optimizer = {}, {}

    def _write_best(self) -> None:
        if not self.best_on_disk and self.state.best:
            pretrained.write_weights(self.folder.folder, self.state.best)
            self.best_on_disk = True

    def _load_best(self) -> None:
        pretrained.import_weights(self.model, self.state.best)

    def _next_phase(self, phase: int) -> None:
        """Go on to a phase from the best weights so far, with a fresh optimizer."""
        self._load_best()
        self.optimizer = make_optimizer(self.model, self.config.optim)
        self.state.phase, self.state.iteration, self.state.losses, self.state.evaluated = phase, 0, [], -1
        self.said_overfitting = False
        self._write_phase_end()
        self._save(always=True)

    def _write_phase_end(self) -> None:
        self._write_best()
        save_tensors(self.folder.folder / STATE_DICT, self.state.best)
        phases = [(phase.name, phase.iters) for phase in self.config.phases]
        folder = self.folder.folder
        draw_loss_curve(folder / METRICS, folder / CURVE, phases, self.tokens_per_character)

    def _finish(self) -> None:
        """The files of a finished run, from the best weights."""
        self._load_best()
        text = self._written(FINAL_TEXT).strip("\n") + "\n"
        with replacing(self.folder.folder / TEXT) as temporary:
            temporary.write_text(text, encoding="utf-8")
        self._write_phase_end()
