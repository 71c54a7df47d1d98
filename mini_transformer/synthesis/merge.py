"""Joining the outputs of several machines (`shard`) into one, without duplicates."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from mini_transformer.errors import UserError
from mini_transformer.synthesis.config import check_packages
from mini_transformer.synthesis.filters import FilterPipeline, choose
from mini_transformer.synthesis.pipeline import log, summary
from mini_transformer.synthesis.store import Record, Store, difference, read_run

WHOLE = {"shard": "1/1"}


def merge(parts: Sequence[Path], out: Path, overwrite: bool = False) -> None:
    """Join the runs of `parts` (named as by their `out`) in `out`, as if one machine had done it all.

    A sample that comes twice is taken once; of two texts that are nearly the same, the one of the lower number. What is
    missing then is written by the command that made the parts, without `shard`. Raises `UserError` if a part is no
    run, is damaged or belongs to other settings than the first, or if `out` holds samples that are not to be replaced.
    """
    common: Record = {}
    records: list[Record] = []
    for part in parts:
        file = part.parent / f"{part.stem}.jsonl"
        if file.resolve() == (out.parent / f"{out.stem}.jsonl").resolve():
            raise UserError(f"`merge`: {part} is the output itself; name another `out`")
        if not file.is_file():
            raise UserError(f"`merge`: {part} is no output of generate_data.py ({file.name} is not beside it)")
        settings, found, _ = read_run(file)
        common = common or settings | WHOLE
        if differs := difference(settings | WHOLE, common):
            raise UserError(f"`merge`: {part} has other settings than {parts[0]} ({differs})")
        records += found
    chosen = choose(common["filters"])
    check_packages(*["datasketch"] * ("duplicates" in chosen))
    unique = FilterPipeline(chosen, "", ()).deduplicate
    merged: dict[tuple[int, int], Record] = {}
    done: set[int] = set()
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
