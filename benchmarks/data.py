"""What the path from text to batches costs, beside the library that does the same: one table, one run.

    python benchmarks/data.py TEXT [--repeats 3] [--times 10]

TEXT is a plain text of some tens of megabytes. Measured are medians (and the range) of several repeats.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers import models, trainers

from mini_transformer.data.cache import DataCache
from mini_transformer.data.corpus import Corpus
from mini_transformer.data.reading import ReaderConfig, read_text
from mini_transformer.data.sources import Sources
from mini_transformer.data.stream import TrainingStream
from mini_transformer.data.tokenized import TokenizedCorpus, tokenize
from mini_transformer.text.documents import split_documents
from mini_transformer.text.tokenizer import BYTE_SYMBOLS, EOT_TOKEN, Tokenizer, byte_level

VOCABULARY = 4096
PREPARE, TRAIN = (["-m", "mini_transformer", verb] for verb in ("prepare", "train"))
BASE = "import torch, mini_transformer.training.run"  # what training imports: its memory is not the data's


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock and of this process's cores."""
    wall, core = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - core


def figure(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):,.1f} ({min(values):,.1f} to {max(values):,.1f})"


def row(name: str, value: str, wanted: str) -> None:
    """One line of the table."""
    print(f"| {name} | {value} | {wanted} |", flush=True)


def stream(path: Path) -> Iterator[str]:
    """The texts of a source, piece by piece."""
    return (piece.text for piece in Sources([path], ReaderConfig()).stream())


def tokenized(path: Path, tokenizer: Tokenizer, folder: Path) -> TokenizedCorpus:
    """Read a text twice, and tokenize it into a new cache."""
    shutil.rmtree(folder, ignore_errors=True)
    corpus = Corpus(Sources([path], ReaderConfig()), 0.0, DataCache(folder), 0)
    deque(corpus.read(), maxlen=0)
    with contextlib.redirect_stdout(io.StringIO()):
        return tokenize(corpus, corpus.read(), tokenizer)


def records(documents: list[str], repeats: int, work: Path) -> None:
    """Reading files of records: verses of the text, one record each."""
    from pyarrow import parquet, table

    verses = [line for document in documents for line in document.split("\n") if line.strip()][:200_000]
    with open(work / "a.jsonl", "w", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"n": n, "text": verse}, ensure_ascii=False) + "\n" for n, verse in enumerate(verses)
        )
    with open(work / "a.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("n", "text"), *enumerate(verses)])
    parquet.write_table(table({"n": range(len(verses)), "text": verses}), work / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        rates = [len(verses) / timed(lambda name=name: deque(stream(work / name), maxlen=0))[0] for _ in range(repeats)]
        row(f"records: {name[2:]}, records/s", figure(rates), "41,000" if name == "a.jsonl" else "")


def characters(documents: list[str], megabytes: float, repeats: int) -> None:
    """The look-up beside the library."""
    tokenizer = Tokenizer.from_characters(documents)
    ours = [megabytes / timed(lambda: [tokenizer.encode(d) for d in documents])[1] for _ in range(repeats)]
    row("characters: table look-up, MB/s of one core", figure(ours), "80")
    some = documents[: max(1, len(documents) // 50)]
    size = sum(len(d.encode()) for d in some) / 1e6
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    plain = []
    for _ in range(repeats):
        plain.append(size / timed(lambda: [tokenizer.backend.encode(d, add_special_tokens=False) for d in some])[1])
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    equal = all(tokenizer.encode(d).tolist() == tokenizer.backend.encode(d, add_special_tokens=False).ids for d in some)
    row("characters: the library, MB/s of one core", figure(plain), "")
    row("characters: equal ids (first fiftieth)", str(equal), "True")


def bpe(path: Path, documents: list[str], repeats: int, work: Path) -> None:
    """Training on the text and encoding it, each beside the library's own, turn by turn."""

    def library() -> None:
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=[EOT_TOKEN], initial_alphabet=BYTE_SYMBOLS, show_progress=False
        )
        byte_level(models.BPE()).train_from_iterator(documents, trainer)

    def own() -> None:
        Tokenizer.train_bpe(stream(path), VOCABULARY)

    pairs = [(timed(own)[0], timed(library)[0]) for _ in range(repeats)]
    row(f"bpe: training {VOCABULARY}, s", figure([one for one, _ in pairs]), "")
    row("bpe: the library's training, s", figure([other for _, other in pairs]), "")
    row("bpe: training, times the library's", f"{statistics.median(a / b for a, b in pairs):.2f}", "1.2 or less")

    tokenizer = Tokenizer.train_bpe(documents, VOCABULARY)
    megabytes = path.stat().st_size / 1e6

    def batch() -> None:
        tokenizer.backend.encode_batch(documents, add_special_tokens=False)

    rates = []
    for _ in range(repeats):
        seconds = timed(lambda: tokenized(path, tokenizer, work / "bpe"))[0], timed(batch)[0]
        rates.append((megabytes / seconds[0], megabytes / seconds[1]))
    row("bpe: text file to cached tokens, MB/s on all cores", figure([one for one, _ in rates]), "")
    row("bpe: the library's encode_batch, MB/s on all cores", figure([other for _, other in rates]), "")
    row(
        "bpe: cached tokens, times the library's rate",
        f"{statistics.median(a / b for a, b in rates):.2f}",
        "0.9 or more",
    )


def feeding(corpus: TokenizedCorpus, tokens: int, repeats: int) -> None:
    """Batches from the cache."""
    source = TrainingStream(corpus.train, 0, 1)
    count = tokens // (32 * 512)

    def feed_all() -> None:
        for number in range(count):
            source.batch(number, 32, 512)

    rates = [count * 32 * 512 / timed(feed_all)[0] / 1e6 for _ in range(repeats)]
    row("feeding: million tokens/s, batch 32, block 512", figure(rates), "5")


def peak(words: list[str]) -> float:
    """The largest memory of a command and its processes, in MB: the sum of their own, sampled."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    most = 0.0
    while process.poll() is None:
        most = max(most, sum(resident(pid) for pid in family(process.pid)))
        time.sleep(0.02)
    assert process.returncode == 0, words
    return most / 1e6


def family(pid: int) -> Iterator[int]:
    """A process and all that it has started."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from family(int(child))


def resident(pid: int) -> int:
    """The memory of a process in bytes, what it shares with others divided among them."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)


def memory(path: Path, times: int, work: Path) -> None:
    """Preparing and training on a text and on several times as much, above what the imports alone take."""
    long = work / "long.txt"
    with open(long, "wb") as file:
        for _ in range(times):
            file.write(path.read_bytes().rstrip(b"\n") + b"\n\n\n")
    val = work / "val.txt"
    val.write_text("\n\n\n".join(split_documents(read_text(path)[:400_000])), encoding="utf-8")
    base = peak(["-c", BASE])
    row("memory: imports alone, MB", f"{base:,.0f}", "")
    shape = "--n-layer 1 --n-embd 32 --n-head 2 --block-size 512 --batch-size 32 --eval-iters 1 --sample-interval 0"
    for kind, tokenizer in (("char", "char"), ("bpe", str(work / "tokenizer"))):
        for text in (path, long):
            flags = ["--data", str(text), "--val-data", str(val), "--cache-dir", str(work / kind), "--in-memory", "0"]
            flags += ["--tokenizer", tokenizer, *shape.split(), "--max-iters", "100", "--eval-interval", "100"]
            size = f"{kind}, {text.stat().st_size / 1e6:,.0f} MB of text, MB above imports"
            row(f"memory: prepare, {size}", f"{peak([*PREPARE, *flags]) - base:,.0f}", "600 or less")
            train = [*TRAIN, *flags, "--out-dir", str(work / "out"), "--overwrite"]
            row(f"memory: train, {size}", f"{peak(train) - base:,.0f}", "600 or less")


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--times", type=int, default=10, help="the text so many times over, for memory")
    given = parser.parse_args()
    torch.set_num_threads(1)
    documents = split_documents(read_text(given.text))
    megabytes = given.text.stat().st_size / 1e6
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{given.text.name}, {megabytes:.1f} MB; {cores} cores, load {load:.1f} at the start\n")
    print("| | median (range) | wanted |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        characters(documents, megabytes, given.repeats)
        feeding(tokenized(given.text, Tokenizer.from_characters(documents), work / "char"), 50_000_000, given.repeats)
        records(documents, given.repeats, work)
        Tokenizer.train_bpe(documents[:50], VOCABULARY).save(work / "tokenizer")
        bpe(given.text, documents, given.repeats, work)
        memory(given.text, given.times, work)


if __name__ == "__main__":
    main()
