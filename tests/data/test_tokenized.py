"""Text in the cache gives what text in memory gives; the cache is whole, found again, and never believed too long."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mini_transformer.config import OptimConfig, Phase, RunConfig, TextConfig, TrainConfig
from mini_transformer.data import sources
from mini_transformer.data.cache import DataCache
from mini_transformer.data.corpus import Corpus
from mini_transformer.data.prepare import TrainingData, prepare_data
from mini_transformer.data.reading import ReaderConfig
from mini_transformer.data.sources import Sources
from mini_transformer.errors import UserError
from mini_transformer.text.tokenizer import Tokenizer
from tests.conftest import FABLES, ROOT, TINY, spawn

Call = Callable[..., tuple[int, str, str]]
TEXT = FABLES.read_text(encoding="utf-8")


def prepare(tmp_path: Path, in_memory: int, *data: Path, run: RunConfig | None = None, **text: object) -> TrainingData:
    settings = TextConfig(**({"in_memory": in_memory, "cache_dir": tmp_path / "cache"} | text))  # type: ignore[arg-type]
    phases = (Phase("train", data or (FABLES,), 10, 1e-3),)
    return prepare_data(TrainConfig(phases, optim=OptimConfig(), run=run or RunConfig(), text=settings))


def age(path: Path) -> None:
    """Make a file look as if it had been there for a while."""
    os.utime(path, (time.time() - 60,) * 2)


def test_characters_are_those_of_the_file(tmp_path: Path) -> None:
    train, validation = tmp_path / "train.txt", tmp_path / "validation.txt"
    documents = TEXT.strip("\n").split("\n\n\n")
    for path, part in ((train, documents[:20]), (validation, documents[20:25])):
        path.write_text("\n\n\n".join(part) + "\n", encoding="utf-8")
    found = prepare(tmp_path, 10**9, train, run=RunConfig(val_data=validation))
    assert found.validation_characters == len(validation.read_text(encoding="utf-8"))
    assert found.phases[0].characters == len(train.read_text(encoding="utf-8"))


def test_pages_of_the_cache_can_be_given_back(tmp_path: Path) -> None:
    for _ in ("made", "found"):
        assert prepare(tmp_path, 0).phases[0].batches.documents.maps  # type: ignore[attr-defined]


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
@pytest.mark.parametrize("documents", [162, 3])
def test_the_cache_changes_nothing(tmp_path: Path, tokenizer: str, documents: int) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n\n".join(TEXT.split("\n\n\n")[:documents]) + "\n", encoding="utf-8")
    vocab = 600 if tokenizer == "bpe" else 0
    small = prepare(tmp_path, 10**9, text, tokenizer=tokenizer, vocab_size=vocab)
    large = prepare(tmp_path, 0, text, tokenizer=tokenizer, vocab_size=vocab)
    assert (tmp_path / "cache" / "tokens").is_dir()
    assert large.tokenizer.fingerprint == small.tokenizer.fingerprint
    assert large.suppress_tokens == small.suppress_tokens
    assert large.validation_titles == small.validation_titles
    assert large.validation_characters == small.validation_characters
    assert large.phases[0].characters == small.phases[0].characters
    assert large.validation.read(0, 10**9).tolist() == small.validation.read(0, 10**9).tolist()
    for number in (0, 1, 500, 3):
        for one, other in zip(
            large.phases[0].batches.batch(number, 4, 64), small.phases[0].batches.batch(number, 4, 64), strict=True
        ):
            assert torch.equal(one, other)


def test_of_several_sources_too(tmp_path: Path, call: Call) -> None:
    parts = TEXT.split("\n\n\n")
    for name, some in (("a", parts[:93]), ("b", parts[93:107]), ("c", parts[107:])):
        (tmp_path / f"{name}.txt").write_text("\n\n\n".join(some), encoding="utf-8")
    paths = [tmp_path / f"{name}.txt" for name in "abc"]
    whole, (small, large, mixed) = prepare(tmp_path, 10**9), (prepare(tmp_path, n, *paths) for n in (10**9, 0, 10**5))
    for one in (small, large, mixed):
        assert one.validation.read(0, 10**9).tolist() == whole.validation.read(0, 10**9).tolist()
        assert torch.equal(one.phases[0].batches.batch(3, 4, 64)[0], whole.phases[0].batches.batch(3, 4, 64)[0])
        assert one.validation_titles == small.validation_titles
        assert (one.phases[0].fingerprint, one.validation_fingerprint) == (
            small.phases[0].fingerprint,
            small.validation_fingerprint,
        )
    assert [title.origin for title in small.validation_titles] == ["a.txt"] * 9 + ["b.txt"] + ["c.txt"] * 6
    # so a run may go on with more memory or less
    flags = [
        "--data",
        *paths,
        *TINY,
        "--max-iters",
        1,
        "--out-dir",
        tmp_path / "out",
        "--cache-dir",
        tmp_path / "cache",
    ]
    assert call("train", *flags)[0] == 0
    assert "this run is finished" in call("train", *flags, "--in-memory", 0)[1]


def test_the_same_bytes_in_another_format_are_another_text(tmp_path: Path, call: Call) -> None:
    text = tmp_path / "a.txt"
    text.write_text("".join(json.dumps({"text": part}) + "\n" for part in TEXT.split("\n\n\n")), encoding="utf-8")
    flags = ["--in-memory", 0, "--cache-dir", tmp_path / "cache", "--val-data", FABLES, "--data"]
    assert ", 1 documents" in call("prepare", *flags, text)[1]
    assert ", 162 documents" in call("prepare", *flags, text.rename(tmp_path / "a.jsonl"))[1]


def test_files_that_come_while_a_folder_is_read_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("un")
    texts = Sources([tmp_path / "texts"], ReaderConfig())
    assert len(list(texts.stream())) == 1
    (tmp_path / "texts" / "b.txt").write_text("deux")
    with pytest.raises(UserError, match="texts: changed while it was read"):
        list(texts.stream())


@pytest.mark.parametrize("in_memory", [0, 10**9])
def test_what_is_held_out_is_not_trained_on_anywhere(
    tmp_path: Path, in_memory: int, capsys: pytest.CaptureFixture[str]
) -> None:
    some = tmp_path / "some.txt"
    some.write_text("\n\n\n".join(TEXT.split("\n\n\n")[:40]), encoding="utf-8")
    twice = prepare(tmp_path, in_memory, FABLES, some)
    assert "8 documents are held out for validation, too, and left out" in capsys.readouterr().out
    assert twice.phases[0].documents == 162 + 40 - 20 - 8
    assert twice.contamination.share < 0.02
    settings = TextConfig(in_memory=in_memory, cache_dir=tmp_path / "cache", replay=0.5)
    phases = (Phase("pretrain", (FABLES,), 10, 1e-3), Phase("finetune", (some,), 10, 1e-3))
    two = prepare_data(TrainConfig(phases, text=settings))
    assert f"{FABLES}: 4 documents are held out" in capsys.readouterr().out
    assert [phase.documents for phase in two.phases] == [158, 36]
    assert two.contamination.share < 0.02
    own, mixed = two.phases
    assert (own.share, mixed.share) == (1.0, 0.5)
    assert mixed.batches.epoch_tokens == own.tokens + mixed.tokens
    held = {title.text for title in two.validation_titles}
    for phase in two.phases:
        shown = [phase.batches.batch(i, 8, 256)[0].flatten().tolist() for i in range(200)]
        text = "".join(map(two.tokenizer.decode, shown))
        assert not [title for title in held if f"{title}\n" in text]


def test_a_text_is_read_twice_at_most_and_not_at_all_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    age(text)
    reads: list[Path] = []
    decode = sources.decode
    monkeypatch.setattr(sources, "decode", lambda path, encoding: reads.append(path) or decode(path, encoding))
    for number, tokenizer in enumerate(("bpe", "char", str(ready(tmp_path)))):
        cache = tmp_path / f"cache-{number}"
        reads.clear()
        prepare(tmp_path, 0, text, tokenizer=tokenizer, cache_dir=cache)
        assert reads == [text] * 2
        prepare(tmp_path, 0, text, tokenizer=tokenizer, cache_dir=cache)
        assert reads == [text] * 2
    # of few documents, the end of the text is validation text: where that begins is known after a read of its own
    monkeypatch.setattr("mini_transformer.data.corpus.LOOK_AHEAD", 1000)
    text.write_text("\n\n\n".join(TEXT.split("\n\n\n")[:9]), encoding="utf-8")
    age(text)
    reads.clear()
    prepare(tmp_path, 0, text)
    assert reads == [text] * 3


def test_it_is_found_again_and_a_changed_source_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    age(text)
    first = prepare(tmp_path, 0, text)
    assert f"{text}: tokenizing, {text.stat().st_size:,} bytes" in capsys.readouterr().out
    again = prepare(tmp_path, 0, text)
    assert f"{text}: 170,293 tokens from the cache, nothing has changed\n" in capsys.readouterr().out
    assert again.phases[0].fingerprint == first.phases[0].fingerprint
    # moved: the same text
    moved = text.rename(tmp_path / "moved.txt")
    assert prepare(tmp_path, 0, moved).phases[0].fingerprint == first.phases[0].fingerprint
    assert "nothing has changed" in capsys.readouterr().out
    # one letter, the same size, the same time of change
    before = moved.stat()
    moved.write_text(TEXT.replace("renard", "canard", 1), encoding="utf-8")
    os.utime(moved, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = prepare(tmp_path, 0, moved)
    assert "tokenizing" in capsys.readouterr().out
    assert changed.phases[0].fingerprint != first.phases[0].fingerprint
    # just now: not believed even within one tick of the clock
    cache = DataCache(tmp_path / "new")
    fingerprints = []
    for content in ("a" * 10, "b" * 10):
        moved.write_text(content)
        corpus = Corpus(Sources([moved], ReaderConfig()), 1.0, cache, 0)
        assert corpus.survey is None
        list(corpus.read())
        fingerprints.append(corpus.fingerprint())
    assert fingerprints[0] != fingerprints[1]
    assert not (tmp_path / "new").exists()


def flip(content: bytes, bit: int) -> bytes:
    """One bit flipped of the third byte from the end: in a file of tokens, of a high byte."""
    return content[:-3] + bytes([content[-3] ^ bit]) + content[-2:]


@pytest.mark.parametrize(
    ("place", "damage"),
    [
        ("tokens/*/tokens.bin", lambda content: content[:-2]),
        ("tokens/*/documents.bin", lambda content: content[:-24]),
        ("tokens/*/documents.bin", lambda content: bytes(len(content))),
        ("tokens/*/manifest.json", lambda content: b"{"),
        ("tokens/*/manifest.json", lambda content: b"{}"),
        ("tokens/*/manifest.json", lambda content: b"[]"),
        ("tokens/*/manifest.json", lambda content: content.replace(b'"documents": ', b'"documents": 1')),
        ("tokens/*/manifest.json", lambda content: b"[" * 100_000),
        ("tokens/*/tokens.bin", lambda content: flip(content[:-1], 1) + content[-1:]),  # another text
        ("tokens/*/tokens.bin", lambda content: flip(content, 128)),  # an id beyond the vocabulary
        ("tokens/*/documents.bin", lambda content: flip(content, 1)),
        ("tokens/*/SHA256SUMS", lambda content: flip(content, 1)),
        ("tokens/*/SHA256SUMS", lambda content: b""),
        ("tokens/*/documents.bin", lambda content: content + bytes(8)),
        ("surveys/*.json", lambda content: b"[1]"),
        ("surveys/*.json", lambda content: b'{"documents": "x"}'),
        ("surveys/*.json", lambda content: b"[" * 100_000),
        ("surveys/*.json", lambda content: content.replace(b'"characters": ', b'"characters": 1')),  # another split
        ("contamination/*.json", lambda content: b"[1]"),
        ("tokenizers/*/tokenizer.json", lambda content: content[:100]),
        ("tokenizers/*/tokenizer.json", lambda content: content.replace(b"2", b"3", 1)),
    ],
)
def test_a_damaged_cache_is_made_anew(tmp_path: Path, place: str, damage: Callable[[bytes], bytes]) -> None:
    first = prepare(tmp_path, 0)
    (file,) = (tmp_path / "cache").glob(place)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    again = prepare(tmp_path, 0)
    assert file.read_bytes() == content
    assert again.phases[0].fingerprint == first.phases[0].fingerprint
    assert (again.phases[0].characters, again.contamination) == (first.phases[0].characters, first.contamination)


def test_several_processes_may_make_the_same(tmp_path: Path) -> None:
    flags = ["--data", FABLES, "--tokenizer", "bpe", "--vocab-size", 400, "--in-memory", 0]
    command = ["-m", "mini_transformer", "prepare", *flags, "--cache-dir", tmp_path / "cache"]
    processes = [spawn(command, ROOT) for _ in range(4)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert sum("Learning the tokenizer" in out for out, _ in outputs) == 1
    assert len({out.splitlines()[-4] for out, _ in outputs}) == 1


def test_small_texts_need_no_cache(tmp_path: Path, call: Call) -> None:
    assert call("prepare", "--data", FABLES, "--cache-dir", tmp_path / "cache")[0] == 0
    assert not (tmp_path / "cache").exists()


def test_a_killed_prepare_goes_on(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n\n".join([TEXT] * 20), encoding="utf-8")  # more than is made safe at once
    age(text)
    flags = ["--data", text, "--tokenizer", ready(tmp_path), "--in-memory", "0"]
    command = ["-m", "mini_transformer", "prepare", *flags, "--cache-dir"]
    process = spawn([*command, tmp_path / "killed"], ROOT)
    shards = tmp_path / "killed" / "tokens"
    while not any(file.stat().st_size for file in shards.glob("*.part/documents.bin")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(shards.glob("*/manifest.json"))
    process = spawn([*command, tmp_path / "killed"], ROOT)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert re.search(r"Going on after \d[\d,]* documents that an interrupted run has tokenized", out)
    whole = spawn([*command, tmp_path / "whole"], ROOT)
    assert whole.wait() == 0
    for name in ("tokens.bin", "documents.bin", "manifest.json"):
        (one,), (other,) = (list((tmp_path / place / "tokens").glob(f"*/{name}")) for place in ("killed", "whole"))
        assert one.read_bytes() == other.read_bytes(), name
    assert [p for p in shards.iterdir() if p.is_dir()] == [one.parent]


def ready(tmp_path: Path) -> Path:
    """A tokenizer that is quick to make and slow to use."""

    Tokenizer.train_bpe([TEXT[:20000]], 300).save(tmp_path / "bpe")
    return tmp_path / "bpe"


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    flags = ["--data", str(FABLES), "--in-memory", "0", "--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "mini_transformer", "prepare", *flags]
    result = subprocess.run(command, cwd=ROOT, preexec_fn=limit, capture_output=True, encoding="utf-8")
    assert result.returncode == 2
    message = f"prepare: --cache-dir: {tmp_path / 'cache'} cannot be written (File too large); choose another place\n"
    assert result.stderr == message
    assert not list(tmp_path.glob("cache/tokens/*/"))


def test_a_small_disk_too(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", disk]).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        flags = ["--data", str(FABLES), "--in-memory", "0", "--cache-dir", str(disk)]
        command = [sys.executable, "-m", "mini_transformer", "prepare", *flags]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
        assert result.returncode == 2
        assert result.stderr.endswith("cannot be written (No space left on device); choose another place\n")
        assert result.stderr.count("\n") == 1
        assert not [p for p in (disk / "tokens").iterdir() if p.is_dir()]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_text_that_turns_out_bad_leaves_nothing(tmp_path: Path, call: Call) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT.encode() + b"\xff" + TEXT.encode())
    flags = ["--data", text, "--in-memory", 0, "--cache-dir", tmp_path / "cache", "--val-data", FABLES]
    code, _, err = call("prepare", *flags, "--tokenizer", ready(tmp_path))
    assert code == 2
    assert err.startswith(f"prepare: {text}: not utf-8: byte 0xff at offset {len(TEXT.encode())}")
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("cache/tokens/*/"))


def test_two_phases_restart_without_tokenizing(tmp_path: Path, call: Call) -> None:
    flags = ["--pretrain-data", FABLES, "--finetune-data", FABLES, *TINY, "--tokenizer", "bpe", "--vocab-size", 400]
    flags += ["--max-iters-pretrain", 2, "--in-memory", 0, "--cache-dir", tmp_path / "cache"]
    flags += ["--out-dir", tmp_path / "out", "--replay", 0.25]
    code, out, _ = call("train", *flags, "--max-iters-finetune", 2)
    assert code == 0
    assert out.count("tokenizing") == 1  # both phases have the same text
    assert "Learning the tokenizer (bpe)" in out
    code, out, err = call("train", *flags, "--max-iters-finetune", 2)
    assert (code, err) == (0, "")
    assert "tokenizing" not in out
    assert "Learning" not in out
    assert "this run is finished" in out
    titles = (tmp_path / "out" / "validation.txt").read_text(encoding="utf-8").splitlines()
    assert len(titles) == 16
    assert titles[0].startswith("fables.txt\t")
    assert titles[0].split("\t")[1].isupper()
    manifest = json.loads(next((tmp_path / "cache" / "tokens").glob("*/manifest.json")).read_text())
    assert next((tmp_path / "cache").rglob("tokens.bin")).stat().st_size == 2 * manifest["tokens"]
    assert manifest["tokens"] == sum(np.fromfile(next((tmp_path / "cache").rglob("documents.bin")), np.int64)[::5])
