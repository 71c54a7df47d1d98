"""From settings to samples: make prompts, let the engine write, filter, keep.

Which samples are asked for next depends only on what was kept and rejected before: rejected ones first, under a new
attempt, then new numbers, until the quota is reached. With an engine that writes whole batches in order, a run that is
killed and started again therefore goes through the same batches as one that is not.
"""

import hashlib
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mini_transformer.data.ngrams import words
from mini_transformer.data.reading import ReaderConfig
from mini_transformer.data.sources import read_documents
from mini_transformer.errors import UserError
from mini_transformer.synthesis import filters, prompts
from mini_transformer.synthesis.backends import Engine, Output, Task
from mini_transformer.synthesis.config import SynthesisConfig, check, check_packages, settings
from mini_transformer.synthesis.filters import FilterPipeline
from mini_transformer.synthesis.prompts import Recipe, sample_seed
from mini_transformer.synthesis.store import Progress, Record, Store

# So many samples may be given up before a run is called hopeless, or a tenth of those that are done.
LEAST_GIVEN_UP = 20
BETWEEN_LINES = 30.0  # seconds
NEEDED_PACKAGES = {"language": "py3langid", "duplicates": "datasketch"}  # by filter


def synthesize(config: SynthesisConfig) -> None:
    """Write samples until there are as many as asked for; goes on where an earlier call was stopped.

    Raises `UserError` for wrong input before anything is written, and if the engine fails or too little is kept.
    """
    check(config)
    chosen = filters.choose(config.filters)
    check_packages(config.engine, *(package for name, package in NEEDED_PACKAGES.items() if name in chosen))
    if config.avoid and "quotes" not in chosen:
        raise UserError("--avoid: is what the filter quotes looks at; add quotes to --filters, or leave --avoid out")
    recipe = prompts.load(config.recipe or prompts.embedded_recipe(), config.language)
    avoided = read_documents(config.avoid, ReaderConfig(config.encoding)) if config.avoid else []
    digest = hashlib.sha256("\0".join(avoided).encode()).hexdigest()[:16] if avoided else ""
    recorded = settings(config, {"--recipe": recipe.digest, "--avoid": digest})
    with closing(Store(config.out, recorded, config.part, config.overwrite)) as store:
        progress = store.progress
        if len(progress.kept) >= config.quota:
            kept = f"{len(progress.kept):,} samples are there already"
            log(f"{config.out}: {kept}; nothing to do (raise --samples for more)")
        else:
            _stop_if_hopeless(config, progress)  # before a model is loaded for nothing
            with closing(_open_engine(config)) as engine:
                before = f"going on after {len(progress.kept):,} of " if progress.kept else ""
                log(f"{config.model}, {engine.place}: {before}{config.quota:,} samples")
                texts = [record["text"] for record in progress.kept]
                pipeline = FilterPipeline(chosen, config.language, avoided, texts)
                fill(config, recipe, pipeline, store, engine)
        log(summary(store.text, progress))


def fill(config: SynthesisConfig, recipe: Recipe, pipeline: FilterPipeline, store: Store, engine: Engine) -> None:
    """Ask, filter and keep until the store has its quota.

    Raises `UserError` if so many samples are given up that it would not end.
    """
    in_flight: set[int] = set()
    with closing(ProgressBar(store.progress, config.quota)) as bar:
        while len(store.progress.kept) < config.quota:
            _stop_if_hopeless(config, store.progress)
            missing = config.quota - len(store.progress.kept) - len(in_flight)
            free = min(engine.concurrency - len(in_flight), missing)
            tasks = _next_tasks(config, recipe, store.progress, in_flight, free)
            in_flight |= {task.prompt.number for task in tasks}
            outputs = engine.generate(tasks)
            in_flight -= {output.task.prompt.number for output in outputs}
            filtered = [pipeline(output.text, output.task.prompt.kind, output.finished) for output in outputs]
            store.commit([_record(output, *one) for output, one in zip(outputs, filtered, strict=True)])
            bar.update()


def _next_tasks(config: SynthesisConfig, recipe: Recipe, progress: Progress, busy: set[int], count: int) -> list[Task]:
    seed, opened = config.seed, progress.open
    again = [n for n in sorted(opened) if n not in busy and opened[n] < config.attempts][:count]
    numbers = again + [progress.draw() for _ in range(count - len(again))]
    return [Task(recipe.prompt(n, seed), opened[n], sample_seed(seed, n, opened[n])) for n in numbers]


def _stop_if_hopeless(config: SynthesisConfig, progress: Progress) -> None:
    kept, given_up = len(progress.kept), sum(attempt >= config.attempts for attempt in progress.open.values())
    if given_up > max(LEAST_GIVEN_UP, (kept + given_up) // 10):
        attempts = f"{config.attempts} attempt{'s' * (config.attempts > 1)}"
        reasons = ", ".join(f"{name} {n}" for name, n in progress.rejected.most_common(4))
        raise UserError(
            f"{kept:,} of {config.quota:,} samples, and {given_up:,} given up after {attempts} each (rejected: "
            f"{reasons}): see {config.out.with_suffix('.jsonl')}; {'more --retries, or ' * (config.temperature > 0)}"
            "another --model or other --filters with another --out may help"
        )


def _record(output: Output, text: str, rejected: str | None) -> Record:
    task, prompt = output.task, output.task.prompt
    record: Record = {"number": prompt.number, "attempt": task.attempt, "rejected": rejected, "seed": task.seed}
    record |= {"kind": prompt.kind.name, "slots": prompt.slots, "system": prompt.system, "prompt": prompt.text}
    record |= {"tokens": output.tokens, "finished": output.finished, "text": text}
    raw = output.text.encode("utf-8", "replace").decode("utf-8")  # a server may send half of a surrogate pair
    return record if raw == text else record | {"raw": raw}


def _open_engine(config: SynthesisConfig) -> Engine:
    if config.engine == "openai":
        from mini_transformer.synthesis.backends.server import ServerEngine

        return ServerEngine(config, log)
    from mini_transformer.synthesis.backends.local import LocalEngine

    return LocalEngine(config, log)


def log(line: str) -> None:
    """Print a line, above the bar if there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class ProgressBar:
    """How far a run is: a bar on standard error if that is a terminal, otherwise a line now and then."""

    def __init__(self, progress: Progress, quota: int) -> None:
        """`progress` is watched: it changes as the run goes on."""
        self._progress, self._quota = progress, quota
        self._bar: tqdm[Any] = tqdm(initial=len(progress.kept), total=quota, unit=" samples", disable=None, leave=False)
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
