"""Streaming gives the documents that the plain split gives, wherever chunks end and long documents are cut."""

import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mini_transformer.text.documents import Piece, cut_document, split_documents, stream_documents
from mini_transformer.text.tokenizer import Tokenizer
from tests.conftest import FABLES

TEXT = FABLES.read_text(encoding="utf-8")
BPE = Tokenizer.train_bpe([TEXT], 600)
ALPHABET = "ab é1.'\n\n\n\n\t \u2028"


def joined(pieces: list[Piece]) -> list[str]:
    documents, parts = [], []
    for piece in pieces:
        parts.append(piece.text)
        if piece.last:
            documents.append("".join(parts))
            parts = []
    assert not parts
    return documents


def chunks(text: str, ends: list[int]) -> list[str]:
    places = sorted({0, len(text), *(end % (len(text) + 1) for end in ends)})
    return [text[a:b] for a, b in pairwise(places)]


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet=ALPHABET, max_size=200), st.lists(st.integers(0, 999), max_size=12), st.integers(1, 40))
@example("a\n\n\n\n \n b c", [3, 4, 5, 6, 7, 8, 9], 1)
@example("aa" + "\n" * 50 + "b", [10, 20], 1)
@example("é bb bb bb bb\n\n", [5], 2)
@example("\n\n\n\u2028\u2028\n\n\n\nb", list(range(9)), 1)
@example(" ba \n\n\n\n\n\n    " + "   " + " \n   abb b", [14, 17], 5)
@example("b" + " \n" * 60 + " a" + "\n\n \n\n  ", list(range(1, 120, 3)), 2)
@example(" " * 30 + "\n" + " " * 30 + "\n \n\n  a", list(range(70)), 4)
def test_streaming_equals_splitting(text: str, ends: list[int], piece: int) -> None:
    parts = [part for chunk in chunks(text, ends) for part in (chunk, "")]
    found = list(stream_documents(parts, "here", piece, 3 * piece))
    assert joined(found) == split_documents(text)
    # and the pieces follow from the text alone
    assert found == [p for d in split_documents(text) for p in cut_document(d, "here", piece, 3 * piece)]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=ALPHABET + "’!AB-", min_size=20, max_size=200), st.integers(1, 15))
def test_cutting_changes_no_token(text: str, piece: int) -> None:
    pieces = [p.text for p in cut_document(text, "here", piece, 10_000)]
    assert "".join(pieces) == text
    assert [i for p in pieces for i in BPE.encode(p).tolist()] == BPE.encode(text).tolist()


def test_a_long_text_without_spaces_is_cut_all_the_same() -> None:
    pieces = list(cut_document("x" * 1000, "here", 10, 100))
    assert max(len(p.text) for p in pieces) <= 100
    assert joined(pieces) == ["x" * 1000]
    assert [p.last for p in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("unit", [" \n", " "])
def test_blank_text_takes_time_in_proportion(unit: str) -> None:
    blank = [unit * (2**14 // len(unit))] * 256
    started = time.process_time()
    assert list(stream_documents(blank, "here")) == []
    assert len(list(stream_documents(["a", *blank, "b"], "here"))) <= 2
    assert time.process_time() - started < 5  # it takes a fraction of a second, and took many
