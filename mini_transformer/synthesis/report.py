"""What a run shows: a bar on a terminal, lines elsewhere, and a summary of all samples at the end."""

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mini_transformer.data.words import words
from mini_transformer.synthesis.store import Progress

BETWEEN_LINES = 30.0  # seconds
LENGTHS = 4  # distinct n-grams are counted for n up to this


def log(line: str) -> None:
    """Print a line, above the bar if there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class ProgressBar:
    """How far a run is: a bar on standard error if that is a terminal, otherwise a line now and then."""

    def __init__(self, progress: Progress, quota: int) -> None:
        """`progress` is watched: it changes as the run goes on."""
        self._progress, self._quota, self._tokens_before = progress, quota, progress.tokens
        self._bar: tqdm[Any] = tqdm(
            initial=len(progress.kept), total=quota, disable=None, dynamic_ncols=True, leave=False
        )
        self._start = self._last_line = time.monotonic()
        self._kept_before = len(progress.kept)

    def update(self) -> None:
        """A batch is done."""
        kept, now = len(self._progress.kept), time.monotonic()
        rate = f"{(self._progress.tokens - self._tokens_before) / max(now - self._start, 1e-9):,.0f} tokens/s"
        self._bar.set_postfix_str(f"{self._progress.asked:,} asked, {rate}", refresh=False)
        self._bar.update(kept - self._bar.n)
        if self._bar.disable and now - self._last_line >= BETWEEN_LINES:
            self._last_line = now
            new = kept - self._kept_before
            left = (now - self._start) / new * (self._quota - kept) if new else 0
            log(f"{self._so_far()}, {rate}" + (f", {tqdm.format_interval(left)} left" if new else ""))

    def close(self) -> None:
        """The bar goes. A run that is stopped tells what it has, as there is no summary then."""
        self._bar.close()
        if self._progress.asked and len(self._progress.kept) < self._quota:
            log(self._so_far())

    def _so_far(self) -> str:
        progress = self._progress
        rejected = f"; rejected: {_rejected(progress)}" if progress.rejected else ""
        return f"{len(progress.kept):,} of {self._quota:,} kept, {progress.asked:,} asked{rejected}"


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


def summary(out: Path, progress: Progress) -> str:
    """Kinds, lengths, variety and rejections of all samples, as a list."""
    texts = [record["text"] for record in progress.kept]
    lengths = sorted(len(text.split()) for text in texts)
    kinds = Counter(record["kind"] for record in progress.kept)
    lines = [
        f"{len(texts):,} samples kept of {progress.asked:,} asked for, {sum(lengths):,} words, "
        f"{sum(map(len, texts)):,} characters; {progress.tokens:,} tokens written",
        f"words per sample: {lengths[0]} to {lengths[-1]}, half of them from {lengths[len(lengths) // 4]} to "
        f"{lengths[(3 * len(lengths)) // 4]}",
        f"different runs of words, of all in {len(texts):,} samples: "
        + ", ".join(f"{share:.0%} of {n}" for n, share in enumerate(distinct(texts), start=1)),
        "kinds: " + ", ".join(f"{kind} {n:,}" for kind, n in kinds.most_common()),
        "rejected: " + (_rejected(progress) or "none"),
    ]
    items = "".join(f"- {line}\n" for line in lines)
    return f"\n{items}\nThe text is in {out}, each sample with its prompt in {out.with_suffix('.jsonl')}"


def _rejected(progress: Progress) -> str:
    return ", ".join(f"{name} {n:,} ({n / progress.asked:.1%})" for name, n in progress.rejected.most_common())
