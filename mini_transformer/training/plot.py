"""`loss_curve.png`: the losses of `metrics.jsonl` over all phases."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np

from mini_transformer.files import replacing


def smoothed(values: list[float], span: int) -> list[float]:
    """Running mean over up to `span` values up to each."""
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
