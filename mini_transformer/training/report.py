"""What a run tells: lines and a progress bar on the terminal, `metrics.jsonl`, and `loss_curve.png`."""

import json
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mini_transformer.files import replacing
from mini_transformer.runtime import log


def duration(seconds: float) -> str:
    """A time span for people: 42 s, 12 min, 3.4 hours, 8.1 days."""
    for size, unit in ((86400, "days"), (3600, "hours")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


tell = log  # its place is `runtime`


class Report:
    """The voice of a run. Lines go to standard output; the bar, on a terminal only, to standard error."""

    def __init__(self, metrics: Path, metrics_size: int) -> None:
        """`metrics_size`: the bytes of the metrics file to keep; what a killed run wrote behind them is dropped."""
        self._metrics = open(metrics, "ab")  # noqa: SIM115 - open for the whole run
        self._metrics.truncate(min(metrics_size, self.metrics_size))
        self._bar: tqdm[Any] | None = None
        self._iters = 0
        self._clock = (time.monotonic(), 0)  # when the counting of iterations began, and at which

    @property
    def metrics_size(self) -> int:
        """Bytes of the metrics file so far."""
        return self._metrics.seek(0, 2)

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.clear()
        tell(line)
        if self._bar is not None:
            self._bar.refresh()

    def begin(self, phase: str, done: int, iters: int) -> None:
        """A phase starts or goes on."""
        self.end()
        self._iters, self._clock = iters, (time.monotonic(), done)
        if sys.stderr.isatty():
            form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
            self._bar = tqdm(desc=phase, initial=done, total=iters, bar_format=form, dynamic_ncols=True, leave=False)

    def end(self) -> None:
        """A phase is over: the bar goes."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        """The run is over or has stopped."""
        self.end()
        self._metrics.close()

    def advance(self, loss: float, tokens_per_second: float) -> None:
        """One iteration is done."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_second / 1000:.1f}k tokens/s", refresh=False)
            self._bar.update()

    def remaining(self, iteration: int) -> str:
        """The time that the phase still needs, evaluations included; empty as long as that is unknown."""
        since, at = self._clock
        if iteration - at < 2 or iteration >= self._iters:
            return ""
        left = (time.monotonic() - since) / (iteration - at) * (self._iters - iteration)
        return f", {duration(left)} left"

    def metric(self, **values: Any) -> None:
        """Append one line to `metrics.jsonl`."""
        self._metrics.write((json.dumps(values) + "\n").encode())
        self._metrics.flush()


def smoothed(values: list[float], span: int) -> list[float]:
    """Running mean over up to `span` values before and with each."""
    out, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - span] if i >= span else 0.0)
        out.append(total / min(i + 1, span))
    return out


def draw_loss_curve(metrics: Path, picture: Path, phases: list[tuple[str, int]], tokens_per_character: float) -> None:
    """Draw the losses of `metrics.jsonl` over the iterations of all phases (name, iterations), best point marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    starts, total = {}, 0
    for name, iters in phases:
        starts[name] = total
        total += iters
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]

    def points(key: str) -> tuple[list[int], list[float]]:
        chosen = [line for line in lines if key in line]
        return [starts[line["phase"]] + line["iteration"] for line in chosen], [line[key] for line in chosen]

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    x, y = points("train_loss")
    axes.plot(x, y, color="#9bb8d3", linewidth=0.8, alpha=0.6)
    axes.plot(x, smoothed(y, max(1, len(y) // 40)), color="#2f6690", linewidth=1.6, label="training")
    x, y = points("val_loss")
    x, y = (x[1:], y[1:]) if len(y) > 2 else (x, y)  # the untrained model is off the scale
    axes.plot(x, y, color="#d1603d", linewidth=1.6, marker="o", markersize=3, label="validation")
    if y:
        best = min(range(len(y)), key=y.__getitem__)
        axes.plot(x[best], y[best], marker="o", markersize=8, markerfacecolor="none", color="#d1603d", linestyle="")
        bits = y[best] * tokens_per_character / math.log(2)
        axes.annotate(
            f"best {y[best]:.3f}\n({bits:.3f} bits per character)",
            (x[best], y[best]),
            xytext=(0, -10),
            textcoords="offset points",
            ha="right" if x[best] > total / 2 else "left",
            va="top",
            fontsize=9,
        )
        lowest = min(y + points("train_loss")[1])
        start = sorted(points("train_loss")[1])[-max(1, len(lines) // 50)]
        axes.set_ylim(lowest - 0.25 * (start - lowest), max(y[best] + 0.3, start * 1.02))
    for name, start_of_phase in starts.items():
        if start_of_phase:
            axes.axvline(start_of_phase, color="#999999", linewidth=0.8, linestyle="--")
        if len(starts) > 1:
            axes.text(start_of_phase, 1.01, name, transform=axes.get_xaxis_transform(), va="bottom", fontsize=9)
    axes.set_xlim(0, total * 1.02)
    axes.set_xlabel("iterations")
    axes.set_ylabel("loss (nats per token)")
    to_bits = tokens_per_character / math.log(2)
    right = axes.secondary_yaxis("right", functions=(partial(np.multiply, to_bits), partial(np.multiply, 1 / to_bits)))
    right.set_ylabel("bits per character")
    axes.grid(alpha=0.25)
    axes.spines["top"].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    with replacing(picture) as temporary:
        figure.savefig(temporary, format="png")
