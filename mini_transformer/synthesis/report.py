"""What a run tells: a bar on a terminal, lines elsewhere, and a summary of all samples at the end."""

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mini_transformer.data.words import words
from mini_transformer.files import replacing
from mini_transformer.synthesis.store import Progress, Store
from mini_transformer.training.report import duration

BETWEEN_LINES = 30.0  # seconds
SUMMARIES = (".summary.md", ".summary.png")
LENGTHS = 4  # distinct n-grams are counted for n up to this


class Report:
    """The voice of a run. Lines go to standard output; the bar, on a terminal only, to standard error."""

    def __init__(self, quota: int, progress: Progress) -> None:
        """`progress` is watched: it changes as the run goes on."""
        self._quota, self._progress = quota, progress
        self._bar: tqdm[Any] | None = None
        self._start = self._last_line = time.monotonic()
        self._before = (progress.kept, progress.tokens)

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line, file=sys.stdout)
            sys.stdout.flush()

    def begin(self, what: str) -> None:
        """The engine is ready."""
        kept = self._progress.kept
        self.say(
            f"{what}: "
            + (f"going on after {kept:,} of {self._quota:,} samples" if kept else f"{self._quota:,} samples")
        )
        self._start = self._last_line = time.monotonic()
        if sys.stderr.isatty():
            form = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            self._bar = tqdm(initial=kept, total=self._quota, bar_format=form, dynamic_ncols=True, leave=False)

    def advance(self) -> None:
        """A batch is done."""
        progress, passed = self._progress, time.monotonic() - self._start
        new = progress.kept - self._before[0]
        left = f", {duration(passed / new * (self._quota - progress.kept))} left" if new else ""
        rate = (
            f"{progress.asked:,} asked, {(progress.tokens - self._before[1]) / max(passed, 1e-9):,.0f} tokens/s{left}"
        )
        if self._bar is not None:
            self._bar.set_postfix_str(rate, refresh=False)
            self._bar.n = progress.kept
            self._bar.refresh()
        elif time.monotonic() - self._last_line >= BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"{self._so_far()}, {rate}{_drops(progress, '; dropped: ')}")

    def end(self) -> None:
        """The bar goes. A run that is stopped tells what it has, as there is no summary then."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._progress.asked and self._progress.kept < self._quota:
            self.say(f"{self._so_far()}, {self._progress.asked:,} asked{_drops(self._progress, '; dropped: ')}")

    def summarise(self, out: Path, records: list[dict[str, Any]]) -> None:
        """Print the summary, and leave it beside the samples as Markdown (no text to train on) and as a picture."""
        text = summary(records, self._progress)
        page, picture = (out.with_suffix(suffix) for suffix in SUMMARIES)
        with replacing(page) as draft:
            draft.write_text(f"# {out.name}\n\n{text}\n![The same as a picture](<{picture.name}>)\n", encoding="utf-8")
        draw(picture, records, self._progress)
        print(f"\n{text}\nThe text is in {out}, each sample with its prompt in {out.with_suffix('.jsonl')}", flush=True)

    def _so_far(self) -> str:
        return f"{self._progress.kept:,} of {self._quota:,} kept"


def is_summarised(store: Store) -> bool:
    """Whether the summary was left after the last batch: a run may be killed between the two."""
    files = [store.text.with_suffix(suffix) for suffix in SUMMARIES]
    done = store.run.stat().st_mtime_ns
    return all(file.exists() and file.stat().st_mtime_ns >= done for file in files)


def distinct(texts: list[str]) -> list[float]:
    """For runs of one to four words: how many different ones there are, over how many there are at all."""
    every: list[set[tuple[str, ...]]] = [set() for _ in range(LENGTHS)]
    totals = [0] * LENGTHS
    for text in texts:
        found = words(text)
        for n in range(LENGTHS):
            runs = list(zip(*(found[i:] for i in range(n + 1)), strict=False))
            every[n].update(runs)
            totals[n] += len(runs)
    return [len(one) / max(1, total) for one, total in zip(every, totals, strict=True)]


def summary(records: list[dict[str, Any]], progress: Progress) -> str:
    """Kinds, lengths, variety and drops, as a list in Markdown."""
    lengths = sorted(record["checks"]["words"] for record in records)
    lines = [
        f"{len(records):,} samples kept of {progress.asked:,} asked for, {sum(lengths):,} words, "
        f"{sum(len(record['text']) for record in records):,} characters",
        f"written: {progress.tokens:,} tokens in {duration(progress.seconds)} "
        f"({progress.tokens / max(progress.seconds, 1e-9):,.0f} tokens/s)",
        f"words per sample: {lengths[0]} to {lengths[-1]}, half of them from {lengths[len(lengths) // 4]} to "
        f"{lengths[(3 * len(lengths)) // 4]}",
        f"different runs of words, of all in {len(records):,} samples: "
        + ", ".join(f"{share:.0%} of {n}" for n, share in enumerate(distinct([r["text"] for r in records]), start=1)),
        "kinds: " + ", ".join(f"{kind} {n:,}" for kind, n in Counter(r["kind"] for r in records).most_common()),
        "dropped: " + (_drops(progress) or "none"),
    ]
    return "".join(f"- {line}\n" for line in lines)


def draw(picture: Path, records: list[dict[str, Any]], progress: Progress) -> None:
    """The same as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 6.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    total = sum(record["checks"]["words"] for record in records)
    figure.suptitle(f"{len(records):,} samples kept of {progress.asked:,} asked for: {total:,} words", fontsize=13)
    (kinds, lengths), (variety, drops) = figure.subplots(2, 2)
    by_kind: dict[str, list[int]] = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record["checks"]["words"])
    names = sorted(by_kind)

    bars = kinds.barh(names[::-1], [len(by_kind[name]) for name in names[::-1]], color="#2f6690")
    kinds.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=9)
    kinds.set_title("Samples by kind", loc="left", fontsize=11)
    kinds.margins(x=0.15, y=max(0.05, 0.6 - 0.1 * len(names)))

    colours = ("#2f6690", "#d1603d", "#6a994e", "#8e6c8a", "#c9a227", "#5c5c5c")
    longest = max(record["checks"]["words"] for record in records) + 1
    edges = [longest * i / 32 for i in range(33)]
    lengths.hist(
        [by_kind[name] for name in names],
        bins=edges,
        stacked=True,
        label=names,
        color=[colours[i % len(colours)] for i in range(len(names))],
    )
    lengths.set_title("Words per sample", loc="left", fontsize=11)
    lengths.legend(frameon=False, fontsize=8)
    lengths.set_ylabel("samples", fontsize=9)
    lengths.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))

    shares = [100 * share for share in distinct([record["text"] for record in records])]
    bars = variety.bar([f"{n} word{'s' * (n > 1)}" for n in range(1, LENGTHS + 1)], shares, color="#6a994e", width=0.6)
    variety.bar_label(bars, fmt="{:.0f}%", padding=2, fontsize=9)
    variety.set_ylim(0, 112)
    variety.set_title(f"Different runs of words, in % of all in {len(records):,} samples", loc="left", fontsize=11)

    dropped = sorted(progress.drops.items(), key=lambda drop: drop[1])
    drops.set_title(f"Dropped, by reason, of {progress.asked:,} asked for", loc="left", fontsize=11)
    if dropped:
        bars = drops.barh([name for name, _ in dropped], [n for _, n in dropped], color="#d1603d")
        drops.bar_label(bars, [f"{n:,} ({n / progress.asked:.1%})" for _, n in dropped], padding=3, fontsize=9)
        drops.margins(x=0.3, y=max(0.05, 0.6 - 0.1 * len(dropped)))
    else:
        drops.text(0.5, 0.5, "nothing", ha="center", va="center", color="#777777", transform=drops.transAxes)
        drops.set_axis_off()
    for axes in (kinds, lengths, variety, drops):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9, length=0)
    for axes, side in ((kinds, "bottom"), (drops, "bottom"), (variety, "left")):  # the bars say their numbers
        axes.spines[side].set_visible(False)
        axes.tick_params(**{f"label{side}": False})
    with replacing(picture) as draft:
        figure.savefig(draft, format="png")


def _drops(progress: Progress, before: str = "") -> str:
    drops = sorted(progress.drops.items(), key=lambda drop: -drop[1])
    return before + ", ".join(f"{name} {n:,} ({n / progress.asked:.1%})" for name, n in drops) if drops else ""
