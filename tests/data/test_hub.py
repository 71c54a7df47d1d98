"""Datasets and tokenizers by name, from a Hub that runs on this machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mini_transformer.text.tokenizer import Tokenizer
from tests.conftest import FABLES, ROOT
from tests.hub import serve_hub

datasets = pytest.importorskip("datasets")
TEXTS = FABLES.read_text(encoding="utf-8").split("\n\n\n")


def prepare(url: str, tmp_path: Path, *words: object, **env: str) -> tuple[int, str, str]:
    """A process of its own: the library looks for the Hub's address when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", **env}
    command = [sys.executable, "-m", "mini_transformer", "prepare", "--cache-dir", tmp_path / "cache", *words]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    return done.returncode, done.stdout, done.stderr


def publish(folder: Path, texts: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"text": texts}).to_parquet(str(folder / "train-00000-of-00001.parquet"))


def test_a_dataset_by_name_is_fetched_once_and_again_when_it_changes(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "datasets" / "someone" / "fables"
    publish(folder, TEXTS)
    with serve_hub(tmp_path / "hub") as hub:
        flags = ("--data", "hf:someone/fables")
        code, first, err = prepare(hub.url, tmp_path, *flags)
        assert (code, err) == (0, "")
        assert "hf:someone/fables: tokenizing\n" in first
        here = prepare(hub.url, tmp_path, "--data", FABLES)[1]
        assert first.endswith(here)
        hub.asked.clear()
        again = prepare(hub.url, tmp_path, *flags)[1]
        assert "from the cache, nothing has changed" in again
        assert [path for path in hub.asked if "someone" in path] == ["/api/datasets/someone/fables"]
        publish(folder, TEXTS[:100])
        changed = prepare(hub.url, tmp_path, *flags)[1]
        assert "tokenizing" in changed
        assert "90 documents" in changed
        code, _, err = prepare(hub.url, tmp_path, "--data", "hf:someone/novels")
        assert code == 2
        assert err == (
            "prepare: hf:someone/novels: neither a folder here nor a public dataset on the Hub "
            "(for a private one: hf auth login)\n"
        )
    # without the Hub: what was fetched is enough
    started = time.monotonic()
    code, last, err = prepare(hub.url, tmp_path, *flags)
    assert (code, err) == (0, "")
    assert "hf:someone/fables: the Hub cannot be reached; taking the text of last time\n" in last
    assert last.splitlines()[-4:] == changed.splitlines()[-4:]
    code, _, err = prepare(hub.url, tmp_path, *flags, "--cache-dir", tmp_path / "other", HF_HUB_OFFLINE="1")
    assert code == 2
    assert err.startswith("prepare: hf:someone/fables: the Hub cannot be reached (")
    assert err.count("\n") == 1
    assert time.monotonic() - started < 60


def test_a_tokenizer_by_name_is_downloaded_once(tmp_path: Path) -> None:
    Tokenizer.train_bpe(TEXTS[:20], 400).save(tmp_path / "hub" / "models" / "someone" / "bpe")
    (tmp_path / "hub" / "models" / "someone" / "empty").mkdir()
    (tmp_path / "hub" / "models" / "someone" / "empty" / "README.md").write_text("nothing")
    with serve_hub(tmp_path / "hub") as hub:
        code, first, err = prepare(hub.url, tmp_path, "--data", FABLES, "--tokenizer", "someone/bpe")
        assert (code, err) == (0, "")
        assert "vocabulary: 400 tokens" in first
        code, _, err = prepare(hub.url, tmp_path, "--data", FABLES, "--tokenizer", "someone/empty")
        assert code == 2
        assert "--tokenizer: someone/empty: there is no tokenizer.json under that name" in err
    assert prepare(hub.url, tmp_path, "--data", FABLES, "--tokenizer", "someone/bpe") == (0, first, "")


@pytest.mark.slow
def test_the_steps_of_the_large_recipe(tmp_path: Path) -> None:
    """docs/french-large.md, small: prepared ahead, trained by two processes without the Hub, and written with."""
    first, second, fables = TEXTS[::2], TEXTS[1::2], tmp_path / "fables.txt"
    publish(tmp_path / "hub" / "datasets" / "someone" / "french", [first[i % len(first)] * 3 for i in range(400)])
    fables.write_text("\n\n\n".join(second), encoding="utf-8")
    small = "--vocab-size 400 --n-layer 1 --n-embd 32 --n-head 2 --block-size 32 --batch-size 4 --max-iters-pretrain 6"
    small += " --max-iters-finetune 4 --eval-interval 2 --eval-iters 2 --in-memory 0"
    words = [
        "--recipe",
        "french-large",
        "--pretrain-data",
        "hf:someone/french",
        "--finetune-data",
        FABLES,
        *small.split(),
    ]
    with serve_hub(tmp_path / "hub") as hub:
        code, out, err = prepare(hub.url, tmp_path, *words)
        assert (code, err) == (0, "")
        assert "Ready: train with the same flags starts at once" in out
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        ROOT / "train.py",
    ]
    command += ["--cache-dir", tmp_path / "cache", "--device", "cpu", "--out-dir", tmp_path / "out", *words]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "hf:someone/french: the Hub cannot be reached; taking the text of last time" in done.stdout
    assert "tokenizing" not in done.stdout
    assert (tmp_path / "out" / "generated_text.txt").stat().st_size > 100
