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


def log(line: str) -> None:
    """Print a line, above the bar if there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class ProgressBar:
    """How far a run is: a bar on standard error if that is a terminal, otherwise a line now and then."""

    def __init__(self, progress: Progress, quota: int) -> None:
        """`progress` is watched: it changes as the run goes on."""
        self._progress, self._quota = progress, quota
        self._bar: tqdm[Any] = tqdm(initial=len(progress.kept), total=quota, disable=None, leave=False)
        self._start = self._last_line = time.monotonic()
        self._kept, self._tokens = len(progress.kept), progress.tokens  # at the start

    def update(self) -> None:
        """A batch is done."""
        kept, seconds = len(self._progress.kept), max(time.monotonic() - self._start, 1e-9)
        rate = f"{(self._progress.tokens - self._tokens) / seconds:,.0f} tokens/s"
        self._bar.set_postfix_str(f"{self._progress.asked:,} asked, {rate}", refresh=False)
        self._bar.update(kept - self._bar.n)
        if self._bar.disable and time.monotonic() - self._last_line >= BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = seconds * (self._quota - kept) / max(1, kept - self._kept)
            log(f"{self._so_far()}; {rate}, {tqdm.format_interval(left)} left")

    def close(self) -> None:
        """The bar goes. A run that is stopped tells what it has, as there is no summary then."""
        self._bar.close()
        if self._progress.asked and len(self._progress.kept) < self._quota:
            log(self._so_far())

    def _so_far(self) -> str:
        rejected = f"; rejected: {_rejected(self._progress)}" if self._progress.rejected else ""
        return f"{len(self._progress.kept):,} of {self._quota:,} kept, {self._progress.asked:,} asked{rejected}"


def summary(out: Path, progress: Progress) -> str:
    """Kinds, lengths, variety and rejections of all samples, as a list."""
    texts = [record["text"] for record in progress.kept]
    characters = sum(map(len, texts))
    lengths, found = sorted(len(text.split()) for text in texts), [words(text) for text in texts]
    low, high = lengths[len(lengths) // 4], lengths[3 * len(lengths) // 4]
    runs = {n: [run for text in found for run in zip(*(text[i:] for i in range(n)), strict=False)] for n in range(1, 5)}
    variety = ", ".join(f"{len(set(all_)) / max(1, len(all_)):.0%} of {n}" for n, all_ in runs.items())
    kinds = Counter(record["kind"] for record in progress.kept).most_common()
    return f"""
- {len(texts):,} samples kept of {progress.asked:,} asked for, {sum(lengths):,} words, {characters:,} characters
- written: {progress.tokens:,} tokens
- words per sample: {lengths[0]} to {lengths[-1]}, half of them from {low} to {high}
- different runs of words, of all in {len(texts):,} samples: {variety}
- kinds: {", ".join(f"{kind} {n:,}" for kind, n in kinds)}
- rejected: {_rejected(progress) or "none"}

The text is in {out}, each sample with its prompt in {out.with_suffix(".jsonl")}"""


def _rejected(progress: Progress) -> str:
    return ", ".join(f"{name} {n:,} ({n / progress.asked:.1%})" for name, n in progress.rejected.most_common())
