"""From settings to samples: make prompts, let the engine write, filter, keep.

Which samples are asked for next depends only on what was kept and rejected before: rejected ones first, under a new
attempt, then new numbers, until the quota is reached. With an engine that writes whole batches in order, a run that is
killed and started again therefore goes through the same batches as one that is not.
"""

import hashlib

from mini_transformer.data.sources import read_documents
from mini_transformer.data.words import all_word_runs
from mini_transformer.errors import UserError
from mini_transformer.synthesis import filters, prompts
from mini_transformer.synthesis.backends import Engine, Output, Task
from mini_transformer.synthesis.config import SynthesisConfig, check, check_packages, settings
from mini_transformer.synthesis.filters import FilterPipeline
from mini_transformer.synthesis.prompts import Recipe, sample_seed
from mini_transformer.synthesis.report import ProgressBar, log, summary
from mini_transformer.synthesis.store import Progress, Record, Store

# So many samples may be given up before a run is called hopeless, or a tenth of those that are done.
LEAST_GIVEN_UP = 20
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
    avoided = read_documents(config.avoid, config.encoding) if config.avoid else []
    digest = hashlib.sha256("\0".join(avoided).encode()).hexdigest()[:16] if avoided else ""
    recorded = settings(config, {"--recipe": recipe.digest, "--avoid": digest})
    store = Store(config.out, recorded, config.part, config.overwrite)
    progress = store.progress
    try:
        if len(progress.kept) >= config.quota:
            kept = f"{len(progress.kept):,} samples are there already"
            log(f"{config.out}: {kept}; nothing to do (raise --samples for more)")
        else:
            _stop_if_hopeless(config, progress)  # before a model is loaded for nothing
            engine = _open_engine(config)
            try:
                before = f"going on after {len(progress.kept):,} of " if progress.kept else ""
                log(f"{config.model}, {engine.place}: {before}{config.quota:,} samples")
                texts = [record["text"] for record in progress.kept]
                pipeline = FilterPipeline(chosen, config.language, all_word_runs(avoided), texts)
                fill(config, recipe, pipeline, store, engine)
            finally:
                engine.close()
        log(summary(store.text, progress))
    finally:
        store.close()


def fill(config: SynthesisConfig, recipe: Recipe, pipeline: FilterPipeline, store: Store, engine: Engine) -> None:
    """Ask, filter and keep until the store has its quota.

    Raises `UserError` if so many samples are given up that it would not end.
    """
    in_flight: set[int] = set()
    bar = ProgressBar(store.progress, config.quota)
    try:
        while len(store.progress.kept) < config.quota:
            _stop_if_hopeless(config, store.progress)
            missing = config.quota - len(store.progress.kept) - len(in_flight)
            free = min(engine.concurrency - len(in_flight), missing)
            tasks = _next_tasks(config, recipe, store.progress, in_flight, free)
            in_flight |= {task.prompt.number for task in tasks}
            outputs = engine.generate(tasks)
            in_flight -= {output.task.prompt.number for output in outputs}
            filtered = [pipeline(output.text, output.task.prompt.kind, output.finished) for output in outputs]
            store.commit([_record(config, output, *one) for output, one in zip(outputs, filtered, strict=True)])
            bar.update()
    finally:
        bar.close()


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


def _record(config: SynthesisConfig, output: Output, text: str, rejected: str | None) -> Record:
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
