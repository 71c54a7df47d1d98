"""What a run logs: lines and a progress bar on the terminal, and `metrics.jsonl`."""

import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from mini_transformer.runtime import log, rank
from mini_transformer.training.events import EventLog


def duration(seconds: float) -> str:
    """A time span for people: 42 s, 12 min, 3.4 hours, 8.1 days."""
    for size, unit in ((86400, "days"), (3600, "hours")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class MetricsLogger:
    """The log of a run. Lines go to standard output; the bar, on a terminal only, to standard error."""

    def __init__(self, metrics: Path, metrics_size: int) -> None:
        """`metrics_size`: the bytes of the metrics file to keep; what a killed run wrote after them is dropped.

        Only rank 0 logs.
        """
        self._metrics: IO[bytes] = io.BytesIO() if rank() else open(metrics, "ab")  # noqa: SIM115 - for the whole run
        self._metrics.truncate(min(metrics_size, self.size))
        self._path = metrics
        self._events: EventLog | None = None
        self._bar: tqdm[Any] = tqdm(disable=True)
        self._clock = (time.monotonic(), 0)  # when the counting of iterations began, and at which

    @property
    def size(self) -> int:
        """Bytes of the metrics file so far."""
        return self._metrics.seek(0, 2)

    def log(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        self._bar.clear()
        log(line)
        self._bar.refresh()

    def add_events(self, folder: Path, phases: Sequence[tuple[str, int]], at: tuple[int, int]) -> None:
        """Write for TensorBoard, too; see `EventLog`."""
        if rank() == 0:
            self._events = EventLog(folder, phases, at, self._path.read_bytes())

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
        self._metrics.write((json.dumps(values) + "\n").encode())
        self._metrics.flush()
        if self._events:
            self._events.write(values)

    def sample(self, text: str, phase: str, iteration: int) -> None:
        """Show a text of the model."""
        self.log("\n".join(f"    | {line}" for line in text.strip().splitlines()))
        if self._events:
            self._events.sample(text, phase, iteration)
