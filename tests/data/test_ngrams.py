from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_transformer.data.ngrams import (
    MAX_RUNS,
    RUN,
    Contamination,
    ContaminationCheck,
    run_hashes,
    word_runs,
    words,
)
from tests.conftest import FABLES, TINY

WORDS = st.lists(st.sampled_from(["le", "loup", "l", "cœur", "été", "a", "aa", "лиса", "mañana"]), max_size=40)
TEXT = FABLES.read_text(encoding="utf-8")
VERSES = "Maître Corbeau, sur un arbre perché,\n    Tenait en son bec un fromage."


def contamination(validation: list[str], training: list[str], max_runs: int = MAX_RUNS) -> Contamination:
    check = ContaminationCheck(max_runs)
    for text in validation:
        check.add(text, is_validation=True)
    check.search()
    for text in training:
        check.add(text, is_validation=False)
    return check.result()


def test_words_are_letters_in_lower_case() -> None:
    assert words("L'Été, à 3 heures : CŒUR d’or—Ça !") == ["l", "été", "à", "heures", "cœur", "d", "or", "ça"]
    assert words("e\u0301te\u0301") == ["été"]


def test_a_quotation_is_found_whatever_its_layout() -> None:
    known = run_hashes([VERSES, "autre chose"])

    def shared(text: str) -> int:
        return int(np.isin(run_hashes([text]), known).sum())

    assert shared("Il dit : « Maître corbeau sur un arbre\nperché tenait en main » et se tut") == 1
    assert shared("maître corbeau sur un arbre perché tenait bon") == 0  # seven words
    assert shared("Maître… corbeau ! Sur un arbre perché tenait en son bec, un jour") == 4


def test_no_run_reaches_into_the_next_text() -> None:
    assert len(run_hashes(["a b c d", "e f g h"])) == 0
    assert word_runs("a b c d e f g h i") == ["a b c d e f g h", "b c d e f g h i"]
    assert word_runs("a b c", length=2) == ["a b", "b c"]


@settings(deadline=None)
@given(WORDS, st.sampled_from([" ", "'", ", ", " 3 ", "\n"]))
def test_hashes_stand_for_runs(words: list[str], gap: str) -> None:
    text = gap.join(words).title()
    found = run_hashes([text]).tolist()
    plain = list(word_runs(text))
    assert len(found) == len(plain) == max(0, len(words) - RUN + 1)
    assert len(set(found)) == len(set(plain))
    assert len(set(zip(found, plain, strict=True))) == len(set(plain))


def test_no_two_runs_of_a_real_text_have_one_hash() -> None:
    assert len(set(run_hashes([TEXT]).tolist())) == len(set(word_runs(TEXT)))


def test_every_letter_counts_for_both() -> None:
    letters = [c for c in map(chr, range(0x30000)) if words(c) == [c]]
    assert len(letters) > 100_000
    text = " ".join(c * 2 + "x" for c in letters)
    assert len(run_hashes([text])) == len(list(word_runs(text))) == len(letters) - RUN + 1


def test_without_words_nothing_is_claimed() -> None:
    assert str(contamination(["1 2 3"], ["1 2 3"])) == "not measured: the validation text has no run of 8 words"


@settings(deadline=None)
@given(st.lists(WORDS.map(" ".join)), st.lists(WORDS.map(" ".join)))
def test_contamination_is_what_sets_say(validation: list[str], training: list[str]) -> None:
    there = {run for text in training for run in word_runs(text)}
    here = {run for text in validation for run in word_runs(text)}
    found = contamination(validation, training)
    assert (found.shared, found.runs) == (len(here & there), len(here))


def test_of_many_runs_a_sample_is_taken() -> None:
    half = TEXT[: len(TEXT) // 2]
    whole, sample = contamination([TEXT], [half]), contamination(TEXT.split("\n\n\n"), [half], 3000)
    assert 1000 < sample.runs <= 3000 < whole.runs
    assert abs(sample.share - whole.share) < 0.05


@pytest.mark.parametrize("in_memory", [0, 10**8])
def test_a_run_reports_it(tmp_path: Path, call: Callable[..., tuple[int, str, str]], in_memory: int) -> None:
    flags = ["--data", FABLES, *TINY, "--max-iters", 1, "--in-memory", in_memory, "--cache-dir", tmp_path / "cache"]
    code, out, err = call("train", *flags, "--val-data", FABLES, "--out-dir", tmp_path / "out")
    assert code == 0
    assert "\nContamination: 100.0% of the validation text's runs of 8 words are in the training text, too (" in out
    assert err == "Warning: the model trains on much of the validation text; its loss will flatter\n"
    for _ in range(2):
        assert "contamination: 0.0% of the validation text's runs" in call("prepare", *flags)[1]
