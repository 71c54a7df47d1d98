"""Text in the cache gives what text in memory gives; the cache is whole, found again, and never believed too long."""

import json
import os
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
from mini_transformer.data.cache import Cache
from mini_transformer.training.phases import Material, read_material
from tests.conftest import FABLES, ROOT, TINY, spawn

Call = Callable[..., tuple[int, str, str]]
TEXT = FABLES.read_text(encoding="utf-8")


def material(tmp_path: Path, in_memory: int, *data: Path, run: RunConfig | None = None, **text: object) -> Material:
    settings = TextConfig(in_memory=in_memory, cache_dir=tmp_path / "cache", **text)  # type: ignore[arg-type]
    phases = (Phase("train", data or (FABLES,), 10, 1e-3),)
    return read_material(TrainConfig(phases, optim=OptimConfig(), run=run or RunConfig(), text=settings))


def age(path: Path) -> None:
    """Make a file look as if it had been there for a while."""
    os.utime(path, (time.time() - 60,) * 2)


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
@pytest.mark.parametrize("documents", [162, 3])
def test_the_cache_changes_nothing(tmp_path: Path, tokenizer: str, documents: int) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n\n".join(TEXT.split("\n\n\n")[:documents]) + "\n", encoding="utf-8")
    vocab = 600 if tokenizer == "bpe" else 0
    small = material(tmp_path, 10**9, text, tokenizer=tokenizer, vocab_size=vocab)
    large = material(tmp_path, 0, text, tokenizer=tokenizer, vocab_size=vocab)
    assert (tmp_path / "cache" / "shards").is_dir()
    assert large.tokenizer.digest == small.tokenizer.digest
    assert large.unseen == small.unseen
    assert large.validation_titles == small.validation_titles
    assert large.validation_characters == small.validation_characters
    assert large.phases[0].characters == small.phases[0].characters
    assert large.validation.read(0, 10**9).tolist() == small.validation.read(0, 10**9).tolist()
    for number in (0, 1, 500, 3):
        for one, other in zip(
            large.phases[0].stream.batch(number, 4, 64), small.phases[0].stream.batch(number, 4, 64), strict=True
        ):
            assert torch.equal(one, other)


def test_it_is_found_again_and_a_changed_source_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    age(text)
    first = material(tmp_path, 0, text)
    assert f"{text}: tokenising, {text.stat().st_size:,} bytes" in capsys.readouterr().out
    reads: list[Path] = []
    monkeypatch.setattr("mini_transformer.data.cache._hash_file", lambda path: reads.append(path))
    again = material(tmp_path, 0, text)
    assert f"{text}: 170,293 tokens from the cache, nothing has changed\n" in capsys.readouterr().out
    assert reads == []
    assert again.phases[0].digest == first.phases[0].digest
    monkeypatch.undo()
    # moved: the same text
    moved = text.rename(tmp_path / "moved.txt")
    assert material(tmp_path, 0, moved).phases[0].digest == first.phases[0].digest
    assert "nothing has changed" in capsys.readouterr().out
    # one letter, the same size, the same time of change
    before = moved.stat()
    moved.write_text(TEXT.replace("renard", "canard", 1), encoding="utf-8")
    os.utime(moved, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = material(tmp_path, 0, moved)
    assert "tokenising" in capsys.readouterr().out
    assert changed.phases[0].digest != first.phases[0].digest
    # just now: not believed even within one tick of the clock
    cache = Cache(tmp_path / "new")
    moved.write_text("a" * 10)
    one = cache.content([moved])
    moved.write_text("b" * 10)
    assert cache.content([moved]) != one
    assert not (tmp_path / "new").exists()


def test_a_damaged_cache_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = material(tmp_path, 0)
    (tokens,) = (tmp_path / "cache" / "shards").glob("*/tokens.bin")
    content = tokens.read_bytes()
    for damage in (lambda: tokens.write_bytes(content[:-2]), lambda: (tokens.parent / "manifest.json").write_text("{")):
        damage()
        capsys.readouterr()
        again = material(tmp_path, 0)
        assert "tokenising" in capsys.readouterr().out
        assert tokens.read_bytes() == content
        assert again.phases[0].digest == first.phases[0].digest


def test_small_texts_need_no_cache(tmp_path: Path, call: Call) -> None:
    assert call("prepare", "--data", FABLES, "--cache-dir", tmp_path / "cache")[0] == 0
    assert not (tmp_path / "cache").exists()


def test_a_killed_prepare_goes_on(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n\n".join([TEXT] * 40), encoding="utf-8")  # more than is made safe at once
    age(text)
    flags = ["--data", text, "--tokenizer", ready(tmp_path), "--in-memory", "0"]
    command = ["-m", "mini_transformer", "prepare", *flags, "--cache-dir"]
    process = spawn([*command, tmp_path / "killed"], ROOT)
    shards = tmp_path / "killed" / "shards"
    while not list(shards.glob("*.part/progress.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(shards.glob("*/manifest.json"))
    process = spawn([*command, tmp_path / "killed"], ROOT)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "Going on with the tokens of an interrupted run: " in out
    whole = spawn([*command, tmp_path / "whole"], ROOT)
    assert whole.wait() == 0
    for name in ("tokens.bin", "documents.bin", "manifest.json"):
        (one,), (other,) = (list((tmp_path / place / "shards").glob(f"*/{name}")) for place in ("killed", "whole"))
        assert one.read_bytes() == other.read_bytes(), name
    assert [p for p in shards.iterdir() if p.is_dir()] == [one.parent]


def ready(tmp_path: Path) -> Path:
    """A tokenizer that is quick to make and slow to use."""
    from mini_transformer.text.make import write_tokenizer
    from mini_transformer.text.tokenizer import Tokenizer

    write_tokenizer(Tokenizer.train_bpe([TEXT[:20000]], 300), tmp_path / "bpe")
    return tmp_path / "bpe"


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    flags = ["--data", str(FABLES), "--in-memory", "0", "--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "mini_transformer", "prepare", *flags]
    result = subprocess.run(command, cwd=ROOT, preexec_fn=limit, capture_output=True, encoding="utf-8")
    assert result.returncode == 2
    message = f"prepare: --cache-dir: {tmp_path / 'cache'} cannot be written (File too large); name another place\n"
    assert result.stderr == message
    assert not [p for p in (tmp_path / "cache" / "shards").iterdir() if p.is_dir()]


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
        assert result.stderr.endswith("cannot be written (No space left on device); name another place\n")
        assert result.stderr.count("\n") == 1
        assert not [p for p in (disk / "shards").iterdir() if p.is_dir()]
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
    assert not [p for p in (tmp_path / "cache" / "shards").iterdir() if p.is_dir()]


def test_two_phases_restart_without_tokenising(tmp_path: Path, call: Call) -> None:
    flags = ["--pretrain-data", FABLES, "--finetune-data", FABLES, *TINY, "--tokenizer", "bpe", "--vocab-size", 400]
    flags += ["--max-iters-pretrain", 2, "--in-memory", 0, "--cache-dir", tmp_path / "cache"]
    flags += ["--out-dir", tmp_path / "out", "--replay", 0.25]
    code, out, _ = call("train", *flags, "--max-iters-finetune", 2)
    assert code == 0
    assert out.count("tokenising") == 1  # both phases have the same text
    assert "Learning the tokenizer (bpe)" in out
    code, out, err = call("train", *flags, "--max-iters-finetune", 2)
    assert (code, err) == (0, "")
    assert "tokenising" not in out
    assert "Learning" not in out
    assert "this run is finished" in out
    titles = (tmp_path / "out" / "validation.txt").read_text(encoding="utf-8").splitlines()
    assert len(titles) == 16
    assert titles[0].startswith("fables.txt\t")
    assert titles[0].split("\t")[1].isupper()
    manifest = json.loads(next((tmp_path / "cache" / "shards").glob("*/manifest.json")).read_text())
    assert manifest["dtype"] == "uint16"
    assert manifest["tokens"] == sum(np.fromfile(next((tmp_path / "cache").rglob("documents.bin")), np.int64)[::2])
