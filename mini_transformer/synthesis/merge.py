"""Joining the outputs of several machines (`--shard`) into one, without duplicates."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mini_transformer.errors import UserError
from mini_transformer.synthesis import filters
from mini_transformer.synthesis.report import Report
from mini_transformer.synthesis.settings import check_packages
from mini_transformer.synthesis.store import Progress, Store, read_run


def merge(outs: Sequence[Path], out: Path, overwrite: bool = False) -> None:
    """Join the runs of `outs` (named as by their `--out`) in `out`, as if one machine had done it all.

    A number that comes twice is taken once; of two texts that are nearly the same, the one of the lower number. What is
    missing then is written by the command that made the parts, without `--shard`. Raises `UserError` if a part is no
    run, or belongs to other settings than the first.
    """
    runs = []
    for part in outs:
        if part.with_suffix("") == out.with_suffix(""):
            raise UserError(f"--merge: {part} is the output itself; name another --out")
        file = part.with_suffix(".run.json")
        if not file.exists():
            raise UserError(f"--merge: {part} is no output of generate_data.py ({file.name} is not beside it)")
        runs.append(read_run(file))
    common = runs[0][0] | {"--shard": "1/1"}
    for part, (settings, _) in zip(outs, runs, strict=True):
        for name in common:
            if name != "--shard" and settings.get(name) != common[name]:
                raise UserError(
                    f"--merge: {part} has other settings than {outs[0]} "
                    f"({name}: {settings.get(name)}, not {common[name]})"
                )
    chosen = filters.choose(common["--filters"])
    if "duplicates" in chosen:
        check_packages("datasketch")
    if not overwrite and out.with_suffix(".run.json").exists():
        raise UserError(f"--out: {out} holds samples already; take another --out, or --overwrite to replace them")
    samples: dict[int, dict[str, Any]] = {}
    drops: list[dict[str, Any]] = []
    for part, (_, progress) in zip(outs, runs, strict=True):
        for record in _read(part.with_suffix(".jsonl"), progress):
            samples.setdefault(record["number"], record)
        drops += _read(part.with_suffix(".drops.jsonl"), progress)
    total = Progress(max(progress.next for _, progress in runs))
    for _, progress in runs:
        total.asked += progress.asked
        total.tokens += progress.tokens
        total.seconds += progress.seconds
        total.open |= {number: attempt for number, attempt in progress.open.items() if number not in samples}
        for name, count in progress.drops.items():
            total.drops[name] = total.drops.get(name, 0) + count
    kept: list[dict[str, Any]] = []
    if "duplicates" in chosen:
        from mini_transformer.synthesis.duplicates import Seen

        seen = Seen()
    for number, record in sorted(samples.items()):
        reason = seen.add(record["text"]) if "duplicates" in chosen else None
        if reason is None:
            kept.append(record)
        else:
            drops.append({"reason": reason} | record)
            total.drops[reason] = total.drops.get(reason, 0) + 1
            total.open[number] = record["attempt"] + 1
    if not kept:
        raise UserError(f"--merge: there is no sample in {', '.join(map(str, outs))}")
    total.kept = len(kept)
    store = Store(out, common, 0, overwrite)
    store.progress = total
    store.commit(kept, drops)
    store.close()
    Report(total.kept, total).summarise(out, kept)


def _read(path: Path, progress: Progress) -> list[dict[str, Any]]:
    """The records of finished batches."""
    try:
        data = path.read_bytes()[: progress.sizes.get(path.name, 0)]
        return [json.loads(line) for line in data.splitlines()]
    except (OSError, ValueError):
        raise UserError(f"--merge: {path}: missing or damaged") from None
