"""SIGKILL at random moments: no sample is torn or double, and the set at the end is that of an undisturbed run.

The processes are real ones, started from a server that has loaded the heavy packages already (`forkserver`), so that
the kills fall into the work and not into the start.
"""

import json
import multiprocessing
import random
import re
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from mini_transformer.text.documents import split_documents
from tests.synthesis.conftest import build_instruct_model, check_outputs, flags, records

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.synthesis.heavy"])


def work(words: list[str]) -> None:
    import sys

    import torch

    from mini_transformer import cli

    torch.set_num_threads(1)
    sys.exit(cli.run("generate-data", words))


def start(words: list[str]) -> BaseProcess:
    process = FORKS.Process(target=work, args=(words,), daemon=True)
    process.start()
    return process


def run(words: list[str]) -> None:
    process = start(words)
    process.join(120)
    assert process.exitcode == 0


def whole_lines(out: Path) -> None:
    """What a reader finds right after a kill: a last line may be torn, but nothing before it, and nothing twice."""
    if not out.with_suffix(".jsonl").exists():
        return
    data = out.with_suffix(".jsonl").read_bytes()
    found = [json.loads(line) for line in data.split(b"\n")[:-1]]
    found = [line for line in found if line.get("rejected", "") is None]
    numbers = [record["number"] for record in found]
    assert len(set(numbers)) == len(numbers)
    texts = {record["text"] for record in found}
    assert all(document in texts for document in split_documents(out.read_text(encoding="utf-8"))[:-1])


def finished(out: Path) -> int:
    """How many samples belong to whole batches."""
    file = out.with_suffix(".jsonl")
    markers = re.findall(rb'^{"samples_so_far": (\d+)}$', file.read_bytes() if file.exists() else b"", re.MULTILINE)
    return int(markers[-1]) if markers else 0


def kill_and_go_on(folder: Path, kills: int, samples: int, seed: int, more: list[str]) -> int:
    """Run undisturbed, and again with kills; compare. Returns how many kills came after at least one more batch."""
    model = build_instruct_model(folder / "model")
    calm, stormy = folder / "calm.txt", folder / "stormy.txt"
    words = ["--samples", samples, "--batch", 4, *more]
    run(flags(model, calm, *words))
    draw = random.Random(seed)
    hits = 0
    for _ in range(kills):
        before = finished(stormy)
        process = start(flags(model, stormy, *words))
        if draw.random() < 0.7:  # in the work: after one more batch, or some
            while finished(stormy) == before and process.is_alive():
                process.join(0.002)
            process.join(draw.uniform(0.0, 0.4))
        else:  # anywhere: while it starts, opens its files, loads the model
            process.join(draw.uniform(0.0, 1.5))
        process.kill()
        process.join()
        hits += finished(stormy) > before and process.exitcode == -signal.SIGKILL
        whole_lines(stormy)
    run(flags(model, stormy, *words))
    assert stormy.with_suffix(".jsonl").read_bytes() == calm.with_suffix(".jsonl").read_bytes()
    assert stormy.read_bytes() == calm.read_bytes()
    check_outputs(stormy, [record["number"] for record in records(calm)])
    return hits


def test_killed_5_times(tmp_path: Path) -> None:
    print(kill_and_go_on(tmp_path, 5, samples=60, seed=1, more=[]), "of 5 kills came after at least one more batch")


@pytest.mark.slow
def test_killed_30_times(tmp_path: Path) -> None:
    """Also with filters that reject and ask again: who is asked next must not depend on the kills."""
    more = ["--filters", "truncated,repetition,duplicates", "--retries", "2"]
    for i, flags_ in enumerate(([], more)):
        hits = kill_and_go_on(tmp_path / str(i), 30, samples=400, seed=2 + i, more=flags_)
        print(hits, "of 30 kills came after at least one more batch", flags_)
