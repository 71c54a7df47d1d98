"""BPE-dropout with a seed, against the `tokenizers` library, which has it without one."""

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_transformer.text.segmentation import noisy_copies, segment
from mini_transformer.text.tokenizer import Tokenizer
from tests.conftest import FABLES

TEXT = FABLES.read_text(encoding="utf-8")
BPE = Tokenizer.train_bpe([TEXT], 700)
RANKS = {(a, b): rank for rank, (a, b) in enumerate(json.loads(BPE.backend.to_str())["model"]["merges"])}


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.integers(0, len(TEXT) - 1).map(lambda i: TEXT[i : i + 50])))
def test_without_dropout_it_is_the_library(text: str) -> None:
    assert noisy_copies(BPE, [text], 0.0, 1, 1)[0].tolist() == BPE.encode(text).tolist()


def as_the_paper_says(word: str, dropout: float, draw: Callable[[], float]) -> list[str]:
    """Algorithm 1 of Provilkov et al.: all merges that could be made, less the dropped ones; the first of them."""
    pieces = list(word)
    while True:
        merges = [(RANKS[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in RANKS]
        merges = [merge for merge in merges if draw() >= dropout]
        if not merges:
            return pieces
        at = min(merges)[1]
        pieces = [*pieces[:at], "".join(pieces[at : at + 2]), *pieces[at + 2 :]]


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_as_many_pieces_as_the_paper_says(dropout: float) -> None:
    text = TEXT[:20000]
    words = [word for word, _ in BPE.backend.pre_tokenizer.pre_tokenize_str(text)]
    draw = random.Random(1).random
    expected = np.mean([sum(len(as_the_paper_says(word, dropout, draw)) for word in words) for _ in range(8)])
    found = np.mean([len(copy) for copy in noisy_copies(BPE, [text], dropout, 8, 3)])
    assert found == pytest.approx(expected, rel=0.01)
    assert found > 1.02 * len(BPE.encode(text))


def test_copies_are_the_text_in_other_pieces_and_the_same_for_a_seed() -> None:
    texts = [TEXT[:2000], "", TEXT[2000:5000]]
    copies = noisy_copies(BPE, texts, 0.2, 3, 7)
    assert [BPE.decode(copy.tolist()) for copy in copies] == texts * 3
    assert len({copy.tobytes() for copy in copies[::3]}) == 3
    again, other = noisy_copies(BPE, texts, 0.2, 3, 7), noisy_copies(BPE, texts, 0.2, 3, 8)
    assert all(np.array_equal(a, b) for a, b in zip(copies, again, strict=True))
    assert not np.array_equal(copies[0], other[0])
    assert {copy.dtype for copy in copies} == {BPE.encode("a").dtype}


def test_each_merge_is_left_out_as_often_as_asked() -> None:
    draw = random.Random(1).random
    whole = sum(len(segment("".join(next(iter(RANKS))), RANKS, 0.3, draw)) == 1 for _ in range(4000))
    assert whole / 4000 == pytest.approx(0.7, abs=0.03)


def test_texts_that_cannot_be_cut(tmp_path: Path, trained: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "a.txt").write_text("a")
    flags = ["--data", tmp_path / "a.txt", "--bpe-dropout", "0.1", "--out-dir", tmp_path / "out"]
    code, _, err = call("train", *flags, "--tokenizer", "bpe")
    assert (code, err.split(": ", 2)[2].startswith("too little text")) == (2, True), err
    code, _, err = call("train", *flags, "--tokenizer", trained)
    assert (code, err) == (2, "train: --bpe-dropout: the tokenizer has characters only, which cannot be cut\n")
