"""What a run logs: lines and a progress bar on the terminal, and `metrics.jsonl`."""

import io
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from mini_transformer.files import parse_json, replacing
from mini_transformer.runtime import log, rank
from mini_transformer.training.events import EventLog

Phases = Sequence[tuple[str, int]]  # names and iterations


def duration(seconds: float) -> str:
    """A time span for people: 42 s, 12 min, 3.4 hours, 8.1 days."""
    for size, unit in ((86400, "days"), (3600, "hours")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def read_metrics(path: Path, phases: Phases) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, but for damaged ones: it is a log, on which nothing depends. Says how many."""
    found, damaged, iters = [], 0, dict(phases)
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            values = parse_json(line)
            numbers = [value for name, value in values.items() if name not in ("phase", "expert_load")]
            if (
                type(values["iteration"]) is not int
                or not 0 <= values["iteration"] <= iters[values["phase"]]
                or not all(map(math.isfinite, numbers))
            ):
                raise ValueError
            found.append(values)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            damaged += 1
    if damaged:
        log(f"{path}: {damaged} damaged line{'s' * (damaged > 1)} left out")
    return found


class MetricsLogger:
    """The log of a run. Lines go to standard output; the bar, on a terminal only, to standard error."""

    def __init__(self, metrics: Path, phases: Phases, at: tuple[int, int], evaluated: bool) -> None:
        """`at`: phase and iteration where the run goes on, and whether it was `evaluated` there.

        What a killed run wrote after that is dropped. Only rank 0 logs.
        """
        self._path, self._phases, self._at = metrics, phases, at
        self._metrics: IO[bytes] = io.BytesIO()
        if rank() == 0:
            numbers = {name: number for number, (name, _) in enumerate(phases)}
            lines = (
                _line(values)
                for values in read_metrics(metrics, phases)
                if (numbers[values["phase"]], values["iteration"], "val_loss" in values) <= (*at, evaluated)
                and "temperature" not in values  # found anew
            )
            with replacing(metrics) as temporary:
                temporary.write_bytes(b"".join(lines))
            self._metrics = open(metrics, "ab")  # noqa: SIM115 - for the whole run
        self._events: EventLog | None = None
        self._bar: tqdm[Any] = tqdm(disable=True)
        self._clock = (time.monotonic(), 0)  # when the counting of iterations began, and at which

    def log(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        self._bar.clear()
        log(line)
        self._bar.refresh()

    def add_events(self) -> None:
        """Write for TensorBoard, too; see `EventLog`."""
        if rank() == 0:
            lines = read_metrics(self._path, self._phases)
            self._events = EventLog(self._path.parent, self._phases, self._at, lines)

    def begin(self, phase: str, done: int, iters: int) -> None:
        """A phase starts or goes on."""
        self._bar.close()
        self._clock = time.monotonic(), done
        form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        look = dict(bar_format=form, dynamic_ncols=True, leave=False, disable=rank() > 0 or not sys.stderr.isatty())
        self._bar = tqdm(desc=phase, initial=done, total=iters, **look)

    def close(self) -> None:
        """The run is over or has stopped."""
        self._bar.close()
        self._metrics.close()
        if self._events:
            self._events.close()

    def advance(self, loss: float, tokens_per_second: float) -> None:
        """One iteration is done."""
        self._bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_second / 1000:.1f}k tokens/s", refresh=False)
        self._bar.update()

    def remaining(self, iteration: int) -> str:
        """The time that the phase still needs, evaluations included; empty as long as that is unknown."""
        (since, at), iters = self._clock, self._bar.total
        if iteration - at < 2 or iteration >= iters:
            return ""
        left = (time.monotonic() - since) / (iteration - at) * (iters - iteration)
        return f", {duration(left)} left"

    def write(self, **values: Any) -> None:
        """Append one line to `metrics.jsonl`."""
        self._metrics.write(_line(values))
        self._metrics.flush()
        if self._events:
            self._events.write(values)

    def sample(self, text: str, phase: str, iteration: int) -> None:
        """Show a text of the model."""
        self.log("\n".join(f"    | {line}" for line in text.strip().splitlines()))
        if self._events:
            self._events.sample(text, phase, iteration)


def _line(values: dict[str, Any]) -> bytes:
    return (json.dumps(values) + "\n").encode()
