"""`loss_curve.png`: the losses of `metrics.jsonl` over all phases."""

import math
import statistics
from functools import partial
from pathlib import Path

import numpy as np

from mini_transformer.files import replacing
from mini_transformer.training.metrics import read_metrics


def smoothed(values: list[float], span: int) -> list[float]:
    """Running mean over up to `span` values up to each."""
    return [statistics.fmean(values[max(0, end - span) : end]) for end in range(1, len(values) + 1)]


def draw_loss_curve(metrics: Path, picture: Path, phases: list[tuple[str, int]], tokens_per_character: float) -> None:
    """Draw the losses of `metrics.jsonl` over the iterations of all phases (name, iterations), best point marked."""
    from matplotlib.figure import Figure

    to_bits = tokens_per_character / math.log(2)
    starts, total = {}, 0
    for name, iters in phases:
        starts[name] = total
        total += iters
    lines = read_metrics(metrics, phases)

    def points(key: str) -> tuple[list[int], list[float]]:
        chosen = [line for line in lines if key in line]
        return [starts[line["phase"]] + line["iteration"] for line in chosen], [line[key] for line in chosen]

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot(xlim=(0, total * 1.02), xlabel="iterations", ylabel="loss (nats per token)")
    x, losses = points("train_loss")
    axes.plot(x, losses, color="#9bb8d3", linewidth=0.8, alpha=0.6)
    axes.plot(x, smoothed(losses, max(1, len(losses) // 40)), color="#2f6690", linewidth=1.6, label="training")
    x, y = points("val_loss")
    x, y = (x[1:], y[1:]) if len(y) > 2 else (x, y)  # the untrained model is off the scale
    axes.plot(x, y, color="#d1603d", linewidth=1.6, marker="o", markersize=3, label="validation")
    if y:
        best = min(range(len(y)), key=y.__getitem__)
        axes.plot(x[best], y[best], marker="o", markersize=8, markerfacecolor="none", color="#d1603d", linestyle="")
        text = f"best {y[best]:.3f}\n({y[best] * to_bits:.3f} bits per character)"
        side = "right" if x[best] > total / 2 else "left"
        axes.annotate(text, (x[best], y[best]), (0, -10), textcoords="offset points", ha=side, va="top", fontsize=9)
        lowest, start = min(y + losses), sorted(losses or y)[-max(1, len(lines) // 50)]
        axes.set_ylim(lowest - 0.25 * (start - lowest), max(y[best] + 0.3, start * 1.02))
    for name, start_of_phase in starts.items():
        if start_of_phase:
            axes.axvline(start_of_phase, color="#999999", linewidth=0.8, linestyle="--")
        if len(starts) > 1:
            axes.text(start_of_phase, 1.01, name, transform=axes.get_xaxis_transform(), va="bottom", fontsize=9)
    right = axes.secondary_yaxis("right", functions=(partial(np.multiply, to_bits), partial(np.multiply, 1 / to_bits)))
    right.set_ylabel("bits per character")
    axes.grid(alpha=0.25)
    axes.spines["top"].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    with replacing(picture) as temporary:
        figure.savefig(temporary, format="png")
