"""From settings to samples: make prompts, let the engine write, filter, keep; and join what several machines kept.

Which samples are asked for next depends only on what was kept and rejected before: rejected ones first, under a new
attempt, then new numbers, until the quota is reached. With an engine that writes whole batches in order, a run that is
killed and started again therefore goes through the same batches as one that is not.
"""

import hashlib
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

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
from mini_transformer.synthesis.store import Progress, Record, Store, difference, read_run

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
        raise UserError("`avoid`: is what the filter quotes looks at; add quotes to `filters`, or leave `avoid` out")
    recipe = prompts.load(config.recipe or prompts.embedded_recipe(), config.language)
    avoided = read_documents(config.avoid, ReaderConfig(config.encoding)) if config.avoid else []
    digest = hashlib.sha256("\0".join(avoided).encode()).hexdigest()[:16] if avoided else ""
    recorded = settings(config, {"recipe": recipe.digest, "avoid": digest})
    with closing(Store(config.out, recorded, config.part, config.overwrite)) as store:
        progress = store.progress
        if len(progress.kept) >= config.quota:
            there = len(progress.kept)
            log(f"{config.out}: {there:,} samples are there already; nothing to do (raise --samples for more)")
        else:
            _stop_if_hopeless(config, progress)  # before a model is loaded for nothing
            if config.engine == "openai":
                from mini_transformer.synthesis.backends.server import ServerEngine

                engine: Engine = ServerEngine(config, log)
            else:
                from mini_transformer.synthesis.backends.local import LocalEngine

                engine = LocalEngine(config, log)
            with closing(engine):
                before = f"going on after {len(progress.kept):,} of " if progress.kept else ""
                log(f"{config.model}, {engine.place}: {before}{config.quota:,} samples")
                kept = (record["text"] for record in progress.kept)
                fill(config, recipe, FilterPipeline(chosen, config.language, avoided, kept), store, engine)
        log(summary(store.text, progress))


def merge(parts: Sequence[Path], out: Path, overwrite: bool = False) -> None:
    """Join the runs of `parts` (named as by their `out`) in `out`, as if one machine had done it all.

    A sample that comes twice is taken once; of two texts that are nearly the same, the one of the lower number. What is
    missing then is written by the command that made the parts, without `shard`. Raises `UserError` if a part is no
    run, is damaged or belongs to other settings than the first, or if `out` holds samples that are not to be replaced.
    """
    common, records, whole = Record(), list[Record](), {"shard": "1/1"}
    for part in parts:
        file = part.parent / f"{part.stem}.jsonl"
        if file.resolve() == (out.parent / f"{out.stem}.jsonl").resolve():
            raise UserError(f"`merge`: {part} is the output itself; name another `out`")
        if not file.is_file():
            raise UserError(f"`merge`: {part} is no output of generate_data.py ({file.name} is not beside it)")
        settings, found, _ = read_run(file)
        common = common or settings | whole
        if differs := difference(settings | whole, common):
            raise UserError(f"`merge`: {part} has other settings than {parts[0]} ({differs})")
        records += found
    chosen = filters.choose(common["filters"])
    check_packages(*["datasketch"] * ("duplicates" in chosen))
    unique = FilterPipeline(chosen, "", ()).deduplicate
    merged, done = dict[tuple[int, int], Record](), set[int]()
    # Parts may overlap: of the same attempt the first counts, and what was kept before what was rejected.
    for record in sorted(records, key=lambda r: (r["number"], r["attempt"], r["rejected"] is not None)):
        number, attempt = record["number"], record["attempt"]
        if number not in done and (number, attempt) not in merged:
            record["rejected"] = record["rejected"] or unique(record["text"])
            merged[number, attempt] = record
            if record["rejected"] is None:
                done.add(number)
    if not done:
        raise UserError(f"`merge`: there is no sample in {', '.join(map(str, parts))}")
    with closing(Store(out, common, overwrite=overwrite)) as store:
        if store.progress.asked:
            raise UserError(f"`out`: {out} holds samples already; take another `out`, or `overwrite` to replace them")
        store.commit(list(merged.values()))
        log(summary(out, store.progress))


def fill(config: SynthesisConfig, recipe: Recipe, pipeline: FilterPipeline, store: Store, engine: Engine) -> None:
    """Ask, filter and keep until the store has its quota. Raises `UserError` if too many are given up for it to end."""
    progress, quota, in_flight, last_line = store.progress, config.quota, set[int](), time.monotonic()
    seed, opened = config.seed, progress.open
    # Where standard error is no terminal, there is no bar, but a line now and then.
    bar = tqdm(initial=len(progress.kept), total=quota, unit=" samples", disable=None, leave=False)
    try:
        while len(progress.kept) < quota:
            _stop_if_hopeless(config, progress)
            free = min(engine.concurrency, quota - len(progress.kept)) - len(in_flight)
            again = [n for n in sorted(opened) if n not in in_flight and opened[n] < config.attempts][:free]
            numbers = again + [progress.draw() for _ in range(free - len(again))]
            in_flight.update(numbers)
            tasks = [Task(recipe.prompt(n, seed), opened[n], sample_seed(seed, n, opened[n])) for n in numbers]
            outputs = engine.generate(tasks)
            in_flight -= {output.task.prompt.number for output in outputs}
            store.commit([_record(output, pipeline) for output in outputs])
            bar.set_postfix_str(f"{progress.asked:,} asked, {progress.tokens:,} tokens", refresh=False)
            bar.update(len(progress.kept) - bar.n)
            if bar.disable and time.monotonic() - last_line >= BETWEEN_LINES:
                last_line = time.monotonic()
                log(_so_far(progress, quota))
    finally:
        bar.close()
        if progress.asked and len(progress.kept) < quota:  # it was stopped, and there is no summary
            log(_so_far(progress, quota))


def _stop_if_hopeless(config: SynthesisConfig, progress: Progress) -> None:
    kept, given_up = len(progress.kept), sum(attempt >= config.attempts for attempt in progress.open.values())
    if given_up > max(LEAST_GIVEN_UP, (kept + given_up) // 10):
        attempts = f"{config.attempts} attempt{'s' * (config.attempts > 1)}"
        reasons = ", ".join(f"{name} {n}" for name, n in progress.rejected.most_common(4))
        problem = f"{kept:,} of {config.quota:,} samples, and {given_up:,} given up after {attempts} each"
        more = "more `retries`, or " * (config.temperature > 0)
        advice = f"{more}another `model` or other `filters` with another `out` may help"
        raise UserError(f"{problem} (rejected: {reasons}): see {config.out.with_suffix('.jsonl')}; {advice}")


def _record(output: Output, pipeline: FilterPipeline) -> Record:
    task, prompt = output.task, output.task.prompt
    text, rejected = pipeline(output.text, prompt.kind, output.finished)
    record: Record = {"number": prompt.number, "attempt": task.attempt, "rejected": rejected, "seed": task.seed}
    record |= {"kind": prompt.kind.name, "slots": prompt.slots, "system": prompt.system, "prompt": prompt.text}
    record |= {"tokens": output.tokens, "finished": output.finished, "text": text}
    raw = output.text.encode("utf-8", "replace").decode("utf-8")  # a server may send half of a surrogate pair
    return record if raw == text else record | {"raw": raw}


def log(line: str) -> None:
    """Print a line, above the bar if there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def summary(out: Path, progress: Progress) -> str:
    """Kinds, lengths, variety and rejections of all samples, as a list."""
    texts = [record["text"] for record in progress.kept]
    characters, lengths = sum(map(len, texts)), sorted(len(text.split()) for text in texts)
    low, high = lengths[len(lengths) // 4], lengths[3 * len(lengths) // 4]
    found, variety = [words(text) for text in texts], list[str]()
    for n in range(1, 5):
        runs = [run for text in found for run in zip(*(text[i:] for i in range(n)), strict=False)]
        variety.append(f"{len(set(runs)) / max(1, len(runs)):.0%} of {n}")
    kinds = Counter(record["kind"] for record in progress.kept).most_common()
    return f"""
- {len(texts):,} samples kept of {progress.asked:,} asked for, {sum(lengths):,} words, {characters:,} characters
- written: {progress.tokens:,} tokens
- words per sample: {lengths[0]} to {lengths[-1]}, half of them from {low} to {high}
- different runs of words, of all in {len(texts):,} samples: {", ".join(variety)}
- kinds: {", ".join(f"{kind} {n:,}" for kind, n in kinds)}
- rejected: {_rejected(progress) or "none"}

The text is in {out}, each sample with its prompt in {out.with_suffix(".jsonl")}"""


def _so_far(progress: Progress, quota: int) -> str:
    rejected = f"; rejected: {_rejected(progress)}" if progress.rejected else ""
    return f"{len(progress.kept):,} of {quota:,} kept, {progress.asked:,} asked{rejected}"


def _rejected(progress: Progress) -> str:
    return ", ".join(f"{name} {n:,} ({n / progress.asked:.1%})" for name, n in progress.rejected.most_common())
