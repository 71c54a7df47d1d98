"""Thousands of damaged and hostile files: each is refused in one line, or gives what the whole file gives.

Of a model folder without checksums, which is a stranger's, another model may come out, but it must be whole.
"""

import faulthandler
import hashlib
import json
import math
import os
import random
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mini_transformer import cli
from mini_transformer.checksums import SUMS
from mini_transformer.commands.train import main as _  # noqa: F401 - loaded before memory is measured
from mini_transformer.config import Phase, TextConfig, TrainConfig
from mini_transformer.data.prepare import prepare_data
from mini_transformer.errors import UserError
from mini_transformer.evaluation.likelihood import measure
from mini_transformer.generation.engine import Engine
from mini_transformer.synthesis.store import Store
from tests.conftest import FABLES, TINY
from tests.mutations import flip, mutate

MUTANTS = {"stranger": 4000, "model": 2500, "store": 2400, "cache": 800, "run": 300}  # 10,000 in the slow set
SAMPLE = {"stranger": 30, "model": 15, "store": 30, "cache": 4, "run": 2}
FLIPS = 200
SECONDS, BYTES = 5.0, 1 << 30  # of the processor, as the machine may be busy
TEXT = FABLES.read_text(encoding="utf-8")
SETTINGS = {"seed": 1}


class Case:
    """A folder, what it gives, and how to ask for that. Raises `UserError` where it is refused."""

    def __init__(self, whole: Path, ask: Callable[[Path], object]) -> None:
        self.whole, self.ask = whole, ask

    def files(self) -> list[Path]:
        """All of them, with a fixed order."""
        return sorted(p.relative_to(self.whole) for p in self.whole.rglob("*") if p.is_file() and p.suffix != ".lock")


def ask_model(folder: Path) -> tuple[str, float]:
    engine = Engine.load(folder, torch.device("cpu"))
    text = engine.generate("Un été", 3, seed=1)
    bits = measure(engine.model, engine.tokenizer, TEXT[:300]).bits_per_character
    assert math.isfinite(bits)
    assert bits >= 0
    return text, bits


def ask_store(folder: Path) -> object:
    store = Store(folder / "mix.txt", SETTINGS)
    try:
        return vars(store.progress), (folder / "mix.txt").read_bytes()
    finally:
        store.close()


def ask_cache(folder: Path) -> object:
    text = TextConfig("bpe", vocab_size=300, in_memory=0, cache_dir=folder)
    data = prepare_data(TrainConfig((Phase("train", (folder.parent / "text.txt",), 1, 1e-3),), text=text))
    tokens = hashlib.sha256()
    for documents in (data.phases[0].batches.documents, data.validation.documents):  # type: ignore[attr-defined]
        for ids in documents:
            tokens.update(ids.tobytes())
    return tokens.hexdigest(), data.phases[0].fingerprint, data.suppress_tokens, data.validation_titles


def ask_run(folder: Path) -> object:
    flags = ["--pretrain-data", FABLES, "--finetune-data", FABLES, "--out-dir", folder, *RUN]
    capture.readouterr()
    code = cli.run("train", [str(flag) for flag in flags])
    err = capture.readouterr().err
    if code:
        assert code == 2
        raise UserError(err.removesuffix("\n"))
    assert "Traceback" not in err
    return (folder / "model.safetensors").read_bytes()


RUN = [*TINY, "--max-iters-pretrain", "3", "--max-iters-finetune", "2", "--eval-iters", "1", "--sample-interval", "0"]
RUN += ["--keep-checkpoints", "--block-size", "8", "--n-layer", "1"]
capture: pytest.CaptureFixture[str]


@pytest.fixture(params=list(MUTANTS))
def case(
    request: pytest.FixtureRequest, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[str, Case]:
    return request.param, make(request.param, tmp_path, trained, capsys)


def make(kind: str, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> Case:
    global capture
    whole, capture = tmp_path / "whole", capsys
    if kind in ("stranger", "model"):
        shutil.copytree(trained, whole)
        for file in whole.iterdir():
            if file.name not in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors", SUMS):
                file.unlink()
        if kind == "stranger":
            (whole / SUMS).unlink()
        return Case(whole, ask_model)
    if kind == "store":
        whole.mkdir()
        store = Store(whole / "mix.txt", SETTINGS)
        for first in range(0, 12, 4):
            rejected = [None, "short", None, None]
            store.commit(
                [
                    dict(number=first + i, attempt=0, rejected=why, tokens=5, kind="fable", text=f"Texte {first + i}")
                    for i, why in enumerate(rejected)
                ]
            )
        store.close()
        return Case(whole, ask_store)
    if kind == "cache":
        text = tmp_path / "text.txt"
        text.write_text(TEXT[:20_000], encoding="utf-8")
        os.utime(text, (time.time() - 100,) * 2)
        ask_cache(whole)
        return Case(whole, ask_cache)
    ask_run(whole)
    record = json.loads((whole / "run.json").read_text())
    (whole / "run.json").write_text(json.dumps(record | {"finished": False}))
    return Case(whole, ask_run)


def outcome(case: Case, folder: Path, expected: object) -> str:
    """What comes of a damaged folder: "refused", "same" or "other"."""
    memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)  # a hang that Python cannot end
    line = ""
    try:
        found = "same" if case.ask(folder) == expected else "other"
    except UserError as error:
        found, line = "refused", str(error)
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert "\n" not in line
    assert len(line) < 2000
    assert time.process_time() - started < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < BYTES
    return found


def run_mutants(kind: str, case: Case, tmp_path: Path, mutants: int) -> Counter[str]:
    chance, found, marker = random.Random(kind), Counter[str](), tmp_path / "marker"
    folder, files = tmp_path / "mutant", case.files()
    expected = case.ask(shutil.copytree(case.whole, tmp_path / "copy"))
    for number in range(mutants):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(case.whole, folder)
        file = chance.choice(files)
        mutate(folder / file, chance, marker)
        try:
            result = outcome(case, folder, expected)
            assert result != "other" or kind == "stranger"
        except BaseException:
            shutil.copytree(folder, tmp_path / "failed")
            print(f"{kind}, mutant {number}: {file}, kept in {tmp_path / 'failed'}")
            raise
        found[result] += 1
        assert not marker.exists()
    return found


def test_a_sample_of_mutants(case: tuple[str, Case], tmp_path: Path) -> None:
    found = run_mutants(*case, tmp_path, SAMPLE[case[0]])
    assert found["refused"] or case[0] in ("cache", "run")


@pytest.mark.slow
def test_ten_thousand_mutants(case: tuple[str, Case], tmp_path: Path) -> None:
    found = run_mutants(*case, tmp_path, MUTANTS[case[0]])
    with capture.disabled():
        print(f"\n{case[0]}: {MUTANTS[case[0]]} mutants: {dict(found)}")
    assert found["refused"] or case[0] == "cache"


@pytest.mark.slow
def test_a_run_resumed_after_a_flipped_bit_ends_with_the_same_weights(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, chance, found = make("run", tmp_path, trained, capsys), random.Random(0), Counter[str]()
    expected, folder, files = (case.whole / "model.safetensors").read_bytes(), tmp_path / "flipped", case.files()
    for number in range(FLIPS):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(case.whole, folder)
        file = folder / files[number % len(files)]
        file.write_bytes(flip(file.read_bytes(), chance))
        found[outcome(case, folder, expected)] += 1
        assert not found["other"], file
    with capsys.disabled():
        print(f"\n{FLIPS} flipped bits in {len(files)} files of a run: {dict(found)}")
