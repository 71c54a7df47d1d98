from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_transformer.data.overlap import overlap, run_hashes, runs
from mini_transformer.data.words import RUN, words
from tests.conftest import FABLES, TINY

WORDS = st.lists(st.sampled_from(["le", "loup", "l", "cœur", "été", "a", "aa", "лиса", "mañana"]), max_size=40)
TEXT = FABLES.read_text(encoding="utf-8")


@settings(deadline=None)
@given(WORDS, st.sampled_from([" ", "'", ", ", " 3 ", "\n"]))
def test_hashes_stand_for_runs(words: list[str], gap: str) -> None:
    text = gap.join(words).title()
    found = run_hashes([text]).tolist()
    plain = list(runs(text))
    assert len(found) == len(plain) == max(0, len(words) - RUN + 1)
    assert len(set(found)) == len(set(plain))
    assert len(set(zip(found, plain, strict=True))) == len(set(plain))


def test_no_two_runs_of_a_real_text_have_one_hash() -> None:
    assert len(set(run_hashes([TEXT]).tolist())) == len(set(runs(TEXT)))


def test_every_letter_counts_for_both() -> None:
    letters = [c for c in map(chr, range(0x30000)) if words(c) == [c]]
    assert len(letters) > 100_000
    text = " ".join(c * 2 + "x" for c in letters)
    assert len(run_hashes([text])) == len(list(runs(text))) == len(letters) - RUN + 1


def test_without_words_nothing_is_claimed() -> None:
    assert str(overlap(["1 2 3"], ["1 2 3"])) == "not measured: the validation text has no run of 8 words"


@settings(deadline=None)
@given(st.lists(WORDS.map(" ".join)), st.lists(WORDS.map(" ".join)))
def test_overlap_is_what_sets_say(validation: list[str], training: list[str]) -> None:
    there = {run for text in training for run in runs(text)}
    here = {run for text in validation for run in runs(text)}
    found = overlap(validation, training)
    assert (found.shared, found.runs) == (len(here & there), len(here))


def test_of_many_runs_a_sample_is_taken() -> None:
    half = TEXT[: len(TEXT) // 2]
    whole, sample = overlap([TEXT], [half]), overlap(TEXT.split("\n\n\n"), [half], most=3000)
    assert 1000 < sample.runs <= 3000 < whole.runs
    assert abs(sample.share - whole.share) < 0.05


@pytest.mark.parametrize("in_memory", [0, 10**8])
def test_a_run_reports_it(tmp_path: Path, call: Callable[..., tuple[int, str, str]], in_memory: int) -> None:
    flags = ["--data", FABLES, *TINY, "--max-iters", 1, "--in-memory", in_memory, "--cache-dir", tmp_path / "cache"]
    code, out, err = call("train", *flags, "--val-data", FABLES, "--out-dir", tmp_path / "out")
    assert code == 0
    assert "\nOverlap: 100.0% of the validation text's runs of 8 words stand in the training text, too (" in out
    assert err == "Warning: the validation text is not unknown to the model; its loss will flatter\n"
    for _ in range(2):
        assert "overlap: 0.0% of the validation text's runs" in call("prepare", *flags)[1]
