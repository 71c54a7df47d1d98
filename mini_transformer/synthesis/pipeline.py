"""From settings to samples: draw prompts, let the engine write, judge, keep.

Which samples are asked for next depends only on what was kept and dropped before: dropped ones first, under a new
attempt, then new numbers, until the quota is reached. With an engine that writes whole batches in order, a run that is
killed and started again therefore goes through the same batches as one that is not.
"""

import hashlib
import time
from collections.abc import Callable
from typing import Any

from mini_transformer.data.sources import read_documents
from mini_transformer.data.words import all_word_runs
from mini_transformer.errors import UserError
from mini_transformer.synthesis import filters, prompts
from mini_transformer.synthesis.backends import Engine, Output, Task
from mini_transformer.synthesis.cleaning import clean, plain
from mini_transformer.synthesis.prompts import Recipe, sample_seed
from mini_transformer.synthesis.report import Report, is_summarised
from mini_transformer.synthesis.settings import SynthesisConfig, check, check_packages, settings
from mini_transformer.synthesis.store import Store

# So many samples may be given up before a run is called hopeless, or a tenth of those that are done.
LEAST_GIVEN_UP = 20


def synthesise(config: SynthesisConfig) -> None:
    """Write samples until there are as many as asked for; goes on where an earlier call was stopped.

    Raises `UserError` for wrong input before anything is written, and if the engine fails or too little is kept.
    """
    check(config)
    chosen = filters.choose(config.filters)
    check_packages(*(["httpx"] if config.engine == "openai" else ["transformers"]))
    check_packages(
        *(["py3langid"] if "language" in chosen else []), *(["datasketch"] if "duplicates" in chosen else [])
    )
    if config.avoid and "quotes" not in chosen:
        raise UserError("--avoid: is what the filter quotes looks at; add quotes to --filters, or leave --avoid out")
    recipe = prompts.load(config.recipe or prompts.embedded_recipe(), config.language)
    avoided = read_documents(config.avoid, config.encoding) if config.avoid else []
    digests = {"--recipe": recipe.digest, "--avoid": _digest(avoided)}
    store = Store(config.out, settings(config, digests), config.part[0], config.overwrite)
    report = Report(config.quota, store.progress)
    try:
        if store.progress.kept >= config.quota:
            there = f"{store.progress.kept:,} samples are there already"
            report.say(f"{config.out}: {there}; nothing to do (raise --samples for more)")
            if is_summarised(store):
                return
        else:
            _write(config, recipe, avoided, store, report)
        report.summarise(store.text, store.records)
    finally:
        store.close()


def _write(config: SynthesisConfig, recipe: Recipe, avoided: list[str], store: Store, report: Report) -> None:
    _stop_if_hopeless(config, store)  # before a model is loaded for nothing
    engine = _open_engine(config, report.say)
    try:
        report.begin(f"{config.model}, {engine.place}")
        fill(config, recipe, all_word_runs(avoided), store, engine, report)
    finally:
        report.end()
        engine.close()


def fill(
    config: SynthesisConfig, recipe: Recipe, avoided: set[str], store: Store, engine: Engine, report: Report
) -> None:
    """Ask, judge and keep until the store has its quota. `avoided`: runs of words that no sample may have.

    Raises `UserError` if so many samples are given up that it would not end.
    """
    chosen = filters.choose(config.filters)
    judge = Judge(config, chosen, avoided, [record["text"] for record in store.records])
    progress = store.progress
    in_hand: set[int] = set()
    clock = time.monotonic()
    while progress.kept < config.quota:
        _stop_if_hopeless(config, store)
        wanted = min(engine.room - len(in_hand), config.quota - progress.kept - len(in_hand))
        tasks = _draw(config, recipe, store, in_hand, wanted)
        in_hand |= {task.prompt.number for task in tasks}
        outputs = engine.write(tasks)
        now = time.monotonic()
        progress.seconds, clock = progress.seconds + now - clock, now
        kept, dropped = [], []
        for output in outputs:
            number = output.task.prompt.number
            in_hand.remove(number)
            progress.asked += 1
            progress.tokens += output.tokens
            text, reason = judge(output)
            record = _record(config, chosen, output, text)
            if reason is None:
                kept.append(record)
                progress.kept += 1
                del progress.open[number]
            else:
                dropped.append({"reason": reason} | record)
                progress.drops[reason] = progress.drops.get(reason, 0) + 1
                progress.open[number] = output.task.attempt + 1
        store.commit(kept, dropped)
        report.advance()


class Judge:
    """Cleans outputs and tells why one is dropped, if it is."""

    def __init__(self, config: SynthesisConfig, chosen: tuple[str, ...], avoided: set[str], before: list[str]) -> None:
        """`before`: the texts that an earlier call kept."""
        self._language, self._chosen, self._avoided = config.language, chosen, avoided
        self._add: Callable[[str], str | None] = lambda text: None
        if "duplicates" in chosen:
            from mini_transformer.synthesis.duplicates import Seen

            self._add = Seen().add
            for text in before:
                self._add(text)

    def __call__(self, output: Output) -> tuple[str, str | None]:
        """The text, and the reason to drop it or None. Without any filter, only what is no document is dropped."""
        text = clean(output.text) if self._chosen else plain(output.text)
        candidate = filters.Candidate(text, output.task.prompt.kind, self._language, output.finished)
        reason = filters.judge(candidate, self._chosen)
        if reason is None and "quotes" in self._chosen:
            reason = filters.quotes(text, self._avoided)
        return text, reason or self._add(text)


def _draw(config: SynthesisConfig, recipe: Recipe, store: Store, in_hand: set[int], count: int) -> list[Task]:
    progress = store.progress
    again = [n for n in sorted(progress.open) if n not in in_hand and progress.open[n] < config.attempts][:count]
    new = [progress.next + i * config.part[1] for i in range(count - len(again))]
    progress.next += len(new) * config.part[1]
    progress.open |= dict.fromkeys(new, 0)
    attempts = [(number, progress.open[number]) for number in again + new]
    return [
        Task(recipe.prompt(n, config.seed), attempt, sample_seed(config.seed, n, attempt)) for n, attempt in attempts
    ]


def _stop_if_hopeless(config: SynthesisConfig, store: Store) -> None:
    given_up = sum(attempt >= config.attempts for attempt in store.progress.open.values())
    if given_up > max(LEAST_GIVEN_UP, (store.progress.kept + given_up) // 10):
        drops = sorted(store.progress.drops.items(), key=lambda drop: -drop[1])
        raise UserError(
            f"{store.progress.kept:,} of {config.quota:,} samples, and {given_up:,} given up after "
            f"{config.attempts} attempt{'s' * (config.attempts > 1)} each "
            f"(dropped: {', '.join(f'{name} {n}' for name, n in drops[:4])}): see {store.drops}; "
            f"{'more --retries, or ' if config.temperature > 0 else ''}another --model or other --filters with another "
            "--out may help"
        )


def _record(config: SynthesisConfig, chosen: tuple[str, ...], output: Output, text: str) -> dict[str, Any]:
    prompt = output.task.prompt
    record: dict[str, Any] = {
        "number": prompt.number,
        "attempt": output.task.attempt,
        "seed": output.task.seed,
        "kind": prompt.kind.name,
        "slots": prompt.slots,
        "system": prompt.system,
        "prompt": prompt.text,
        "engine": config.engine,
        "model": config.model,
        "tokens": output.tokens,
        "finished": output.finished,
        "checks": {
            "filters": list(chosen),
            "words": len(text.split()),
            "lines": len([x for x in text.split("\n") if x]),
        },
        "text": text,
    }
    raw = output.text.encode("utf-8", "replace").decode("utf-8")  # a server may send half of a surrogate pair
    return record if raw == text else record | {"raw": raw}


def _open_engine(config: SynthesisConfig, say: Callable[[str], None]) -> Engine:
    if config.engine == "openai":
        from mini_transformer.synthesis.backends.remote import RemoteEngine

        return RemoteEngine(config, say)
    from mini_transformer.synthesis.backends.local import LocalEngine

    return LocalEngine(config, say)


def _digest(documents: list[str]) -> str:
    return hashlib.sha256("\0".join(documents).encode()).hexdigest()[:16] if documents else ""
