import json
import os
import random
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, trainers

from mini_transformer.errors import UserError
from mini_transformer.text.tokenizer import BYTE_SYMBOLS, EOT_TOKEN, DecodeStream, Tokenizer, byte_level
from tests.conftest import FABLES

TEXT = FABLES.read_text(encoding="utf-8")
BPE = Tokenizer.train_bpe([TEXT], 700)
TOKENIZER = Tokenizer.from_characters(["L'été, « cœur » d'où… — ça, € et 🦊 !\n", "abcdefghijklmnopqrstuvwxyz"])


def decode_stream(tokenizer: Tokenizer, ids: list[int], separator: str) -> list[str]:
    stream = DecodeStream(tokenizer, separator)
    return [piece for piece in map(stream.step, ids) if piece]


@settings(max_examples=300, deadline=None)
@given(st.text())
@example("")
@example("e\u0301té \u0000\u0001\u007f\r\n\t🦊👩‍👩‍👧 \ufeff\uffff 𐍈")
@example(f"a literal {EOT_TOKEN} is text")
def test_any_text_comes_back_and_the_fast_path_is_the_library(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids.tolist()) == text
    assert ids.tolist() == TOKENIZER.backend.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.eot_id not in ids
    assert "".join(decode_stream(TOKENIZER, ids.tolist(), "|")) == text


def test_a_known_character_is_one_token() -> None:
    assert len(TOKENIZER.encode("été « cœur » 🦊€")) == len("été « cœur » 🦊€")
    assert len(TOKENIZER.encode("ù")) == 1
    assert len(TOKENIZER.encode("Ž")) == 2
    assert len(TOKENIZER.encode("日")) == 3


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(UserError, match=r"lone surrogate \(U\+D800\) at character 2"):
        TOKENIZER.encode("ab\ud800")
    with pytest.raises(UserError, match="lone surrogate"):
        Tokenizer.from_characters(["\udfff"])


@settings(max_examples=300, deadline=None)
@given(st.text())
@example("")
@example("e\u0301té \u0000\u0001\u007f\r\n\t🦊👩‍👩‍👧 \ufeff\uffff 𐍈")
@example(f"a literal {EOT_TOKEN} is text")
def test_any_text_comes_back_from_bpe(text: str) -> None:
    ids = BPE.encode(text)
    assert BPE.decode(ids.tolist()) == text
    assert BPE.eot_id not in ids
    assert "".join(decode_stream(BPE, ids.tolist(), "|")) == text
    assert [part.tolist() for part in BPE.encode_batch([text, "un", text])] == [
        ids.tolist(),
        BPE.encode("un").tolist(),
        ids.tolist(),
    ]


@given(st.text(), st.sampled_from(["\ud800", "\udfff"]), st.text())
def test_lone_surrogates_are_refused_wherever_they_are(before: str, half: str, after: str) -> None:
    for tokenizer in (BPE, Tokenizer.from_characters(["été"])):
        with pytest.raises(UserError, match=rf"lone surrogate \(U\+{ord(half):04X}\) at character {len(before)}"):
            tokenizer.encode(before + half + after)
    with pytest.raises(UserError, match="lone surrogate"):
        Tokenizer.train_bpe([before + half + after], 300)


def test_the_bpe_vocabulary_is_the_one_asked_for_and_always_the_same() -> None:
    assert BPE.vocab_size == 700
    assert BPE.eot_id == 0
    assert BPE.dtype == np.uint16
    assert not BPE.is_character_level
    assert all(BPE.backend.token_to_id(symbol) is not None for symbol in BYTE_SYMBOLS)
    assert len(TEXT) / len(BPE.encode(TEXT)) > 2
    again = Tokenizer.train_bpe(iter(TEXT.splitlines(keepends=True)), 700)
    assert again.vocab_size == 700
    assert Tokenizer.train_bpe([TEXT], 700).fingerprint == BPE.fingerprint != again.fingerprint
    assert Tokenizer.train_bpe(["un deux un deux"], 700).vocab_size < 270


def test_the_order_of_the_texts_does_not_matter() -> None:
    one = Tokenizer.from_characters(["été", "cœur"])
    other = Tokenizer.from_characters(["cœur", "été"])
    assert one.backend.to_str() == other.backend.to_str()


def test_saved_and_loaded(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path, 64)
    again = Tokenizer.load(tmp_path)
    assert again.vocab_size == TOKENIZER.vocab_size
    assert again.eot_id == TOKENIZER.eot_id
    text = f"Un cœur — {EOT_TOKEN} — 🦊 Ž"
    assert again.encode(text).tolist() == TOKENIZER.encode(text).tolist()


def test_streaming_shows_whole_characters_and_separators() -> None:
    ids = [*TOKENIZER.encode("a日").tolist(), TOKENIZER.eot_id, *TOKENIZER.encode("b").tolist()]
    assert decode_stream(TOKENIZER, ids, "\n\n\n") == ["a", "日", "\n\n\n", "b"]
    broken = TOKENIZER.encode("日").tolist()[:2]
    assert decode_stream(TOKENIZER, [*TOKENIZER.encode("a").tolist(), *broken], "") == ["a"]
    assert "".join(decode_stream(TOKENIZER, [*broken, TOKENIZER.eot_id], "")) == "\ufffd"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}'])
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json: damaged"):
        Tokenizer.load(tmp_path)


def test_a_missing_file_or_eot_token_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
    value = json.loads(TOKENIZER.backend.to_str())
    value["added_tokens"] = []
    del value["model"]["vocab"][EOT_TOKEN]
    value["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"has no <\|endoftext\|> token"):
        Tokenizer.load(tmp_path)


def changed(change: Callable[[dict[str, Any]], object], tokenizer: Tokenizer = BPE) -> Tokenizer:
    """A tokenizer as it is in its file, changed."""
    value = json.loads(tokenizer.backend.to_str())
    change(value)
    return Tokenizer.from_json(json.dumps(value).encode(), "tokenizer.json")


def lose(value: dict[str, Any]) -> None:
    """A hole in the vocabulary: no token for the letter e."""
    model = value["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if token == EOT_TOKEN or "e" not in token}
    model["merges"] = [pair for pair in model["merges"] if "e" not in "".join(pair)]


def replace(pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": "x"}


LOSSES: list[Callable[[dict[str, Any]], object]] = [
    lambda value: value.update(normalizer={"type": "Lowercase"}),
    lambda value: value.update(normalizer=replace("[a-z]{2,}")),
    lambda value: value.update(pre_tokenizer={"type": "Whitespace"}),
    lambda value: value["model"]["vocab"].update({"e": value["model"]["vocab"]["s"]}),  # two tokens of one id
    lose,
]


@pytest.mark.parametrize("change", LOSSES)
def test_a_text_that_does_not_come_back_from_its_tokens_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    tokenizer, text = changed(change), "Les Voyelles\nezsz\n"
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(UserError, match=r"tokenizer\.json: the text does not come back from its tokens"):
            encode(text)


def test_a_normalizer_is_not_passed_over_by_the_fast_path() -> None:
    tokenizer = changed(LOSSES[0], TOKENIZER)
    assert tokenizer.encode("abc").tolist() == TOKENIZER.encode("abc").tolist()
    with pytest.raises(UserError, match="does not come back"):
        tokenizer.encode("Abc")


def test_a_pattern_that_panics_in_the_library_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = changed(lambda value: value.update(normalizer=replace("(a*)*\\1(?<=b+)")))
    with pytest.raises(UserError, match=r"tokenizer\.json: the library fails with it \(.*retry-limit-in-match"):
        tokenizer.encode("a" * 5000)
    assert capfd.readouterr().err == ""


def test_threads_leave_the_terminal_as_it_was() -> None:
    before = os.fstat(2)
    with ThreadPoolExecutor(8) as pool:
        deque(pool.map(BPE.encode, ["Un renard, un loup, un corbeau"] * 2000), maxlen=0)
    assert os.path.samestat(os.fstat(2), before)


def test_an_id_far_beyond_the_others_is_refused_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match="a token has the id 4294967295, beyond our 1048576"):
        changed(lambda value: value["model"]["vocab"].update({"zz": 4294967295}))
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("symbols", ["abcdefghij", "-=", "\n ", "日本"])
def test_one_unbroken_word_is_learned_in_linear_time(symbols: str) -> None:
    chance = random.Random(0)
    word = "".join(chance.choices(symbols, k=150_000))
    started = time.monotonic()
    tokenizer = Tokenizer.train_bpe([word], 500)
    assert time.monotonic() - started < 4
    assert tokenizer.vocab_size > 300 or len(symbols) < 3
    assert json.loads(tokenizer.backend.to_str())["pre_tokenizer"] == json.loads(BPE.backend.to_str())["pre_tokenizer"]


def test_text_without_such_words_gives_the_tokenizer_that_the_library_learns() -> None:
    backend = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[EOT_TOKEN], initial_alphabet=BYTE_SYMBOLS)
    backend.train_from_iterator([TEXT], trainer)
    assert Tokenizer(backend).fingerprint == BPE.fingerprint
