"""Joining the outputs of several machines (`--shard`) into one, without duplicates."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mini_transformer.errors import UserError
from mini_transformer.synthesis import filters
from mini_transformer.synthesis.report import Report
from mini_transformer.synthesis.settings import check_packages
from mini_transformer.synthesis.store import Progress, Store, difference, read_run

Records = list[dict[str, Any]]


def merge(outs: Sequence[Path], out: Path, overwrite: bool = False) -> None:
    """Join the runs of `outs` (named as by their `--out`) in `out`, as if one machine had done it all.

    A number that comes twice is taken once; of two texts that are nearly the same, the one of the lower number. What is
    missing then is written by the command that made the parts, without `--shard`. Raises `UserError` if a part is no
    run, is damaged or belongs to other settings than the first, or if `out` holds samples that are not to be replaced.
    """
    runs: dict[Path, tuple[dict[str, Any], Progress]] = {}
    for part in outs:
        file = part.parent / f"{part.stem}.run.json"
        if file.resolve() == (out.parent / f"{out.stem}.run.json").resolve():
            raise UserError(f"--merge: {part} is the output itself; name another --out")
        if not file.exists():
            raise UserError(f"--merge: {part} is no output of generate_data.py ({file.name} is not beside it)")
        run = read_run(file)
        if run not in runs.values():  # given twice, or a copy
            runs[part] = run
    common = next(iter(runs.values()))[0] | {"--shard": "1/1"}
    for part, (settings, _) in runs.items():
        name = difference(settings | {"--shard": "1/1"}, common)
        if name is not None:
            raise UserError(
                f"--merge: {part} has other settings than {outs[0]} ({name}: {settings.get(name)}, not {common[name]})"
            )
    chosen = filters.choose(common["--filters"])
    if "duplicates" in chosen:
        check_packages("datasketch")
    store = Store(out, common, 0, overwrite)
    try:
        if store.progress.kept or store.progress.asked:
            raise UserError(f"--out: {out} holds samples already; take another --out, or --overwrite to replace them")
        samples = [record for part, (_, progress) in runs.items() for record in _samples(part, progress)]
        drops = [record for part, (_, progress) in runs.items() for record in _drops(part, progress)]
        if not samples:
            raise UserError(f"--merge: there is no sample in {', '.join(map(str, outs))}")
        progresses = [progress for _, progress in runs.values()]
        kept, dropped, store.progress = _join(progresses, samples, drops, "duplicates" in chosen)
        store.commit(kept, dropped)
        Report(len(kept), store.progress).summarise(out, kept)
    finally:
        store.close()


def _join(
    runs: Sequence[Progress], samples: Records, drops: Records, unlike: bool
) -> tuple[Records, Records, Progress]:
    """What is kept, what is dropped, and how far the whole is. `unlike`: near duplicates are dropped."""
    # Parts may overlap: of records of the same attempt the first counts, and what was kept before what was dropped.
    tried = {(record["number"], record["attempt"]): record for record in reversed(samples + drops)}
    dropped = [record for record in drops if tried[record["number"], record["attempt"]] is record]
    kept: Records = []
    if unlike:
        from mini_transformer.synthesis.duplicates import Seen

        seen = Seen()
    for _, record in sorted({record["number"]: record for record in reversed(samples)}.items()):
        reason = seen.add(record["text"]) if unlike else None
        if reason is None:
            kept.append(record)
        else:
            dropped.append({"reason": reason} | record)
    opened = [(number, attempt) for run in runs for number, attempt in run.open.items()]
    attempts = dict(sorted([*opened, *((number, attempt + 1) for number, attempt in tried)]))  # the next of each
    done = {record["number"] for record in kept}
    first_new = max(attempts) + 1
    return (
        kept,
        dropped,
        Progress(
            next=first_new,
            open={number: attempts.get(number, 0) for number in range(first_new) if number not in done},
            kept=len(kept),
            asked=len(tried),
            tokens=sum(record["tokens"] for record in tried.values()),
            seconds=sum(run.seconds for run in runs),
            drops=dict(Counter(record["reason"] for record in dropped)),
        ),
    )


def _samples(part: Path, progress: Progress) -> Records:
    """The samples of a part. Raises `UserError` if they are not all there."""
    path = part.with_suffix(".jsonl")
    records = _read(path, progress, "kind", "checks", "text")
    if records is None or len(records) != progress.kept:
        raise UserError(f"--merge: {path}: missing or damaged")
    return records


def _drops(part: Path, progress: Progress) -> Records:
    """What a part dropped: there to be read by people, so it may be missing."""
    path = part.with_suffix(".drops.jsonl")
    records = _read(path, progress, "reason")
    if records is None:
        print(f"Note: {path}: missing or damaged; what it told of the dropped is not counted", flush=True)
    return records or []


def _read(path: Path, progress: Progress, *needed: str) -> Records | None:
    """The records of finished batches, or None if there is one that is none."""
    try:
        data = path.read_bytes()[: progress.sizes.get(path.name, 0)]
        records = [json.loads(line) for line in data.splitlines()]
        good = all(name in record for record in records for name in ("number", "attempt", "tokens", *needed))
    except (OSError, ValueError, TypeError):
        return None
    return records if good else None
