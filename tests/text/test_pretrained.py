"""Byte-level BPE: learnt here, or made by others."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mini_transformer.errors import UserError
from mini_transformer.text.pretrained import ready_tokenizer
from mini_transformer.text.tokenizer import BYTE_SYMBOLS, EOT_TOKEN, Tokenizer
from tests.conftest import FABLES, TINY

Call = Callable[..., tuple[int, str, str]]
TEXT = FABLES.read_text(encoding="utf-8")
BPE = Tokenizer.train_bpe([TEXT], 700)


@settings(max_examples=300, deadline=None)
@given(st.text())
@example("")
@example("e\u0301té \u0000\u0001\u007f\r\n\t🦊👩‍👩‍👧 \ufeff\uffff 𐍈")
@example(f"a literal {EOT_TOKEN} is text")
def test_any_text_comes_back(text: str) -> None:
    ids = BPE.encode(text)
    assert BPE.decode(ids.tolist()) == text
    assert BPE.eot_id not in ids
    assert "".join(BPE.decode_stream(ids.tolist(), "|")) == text
    assert [part.tolist() for part in BPE.encode_batch([text, "un", text])] == [
        ids.tolist(),
        BPE.encode("un").tolist(),
        ids.tolist(),
    ]


@given(st.text(), st.sampled_from(["\ud800", "\udfff"]), st.text())
def test_lone_surrogates_are_refused(before: str, half: str, after: str) -> None:
    for tokenizer in (BPE, Tokenizer.from_characters(["été"])):
        with pytest.raises(UserError, match=rf"lone surrogate \(U\+{ord(half):04X}\) at character {len(before)}"):
            tokenizer.encode(before + half + after)
    with pytest.raises(UserError, match="lone surrogate"):
        Tokenizer.train_bpe([before + half + after], 300)


def test_the_vocabulary_is_the_one_asked_for_and_always_the_same() -> None:
    assert BPE.vocab_size == 700
    assert BPE.eot_id == 0
    assert BPE.dtype == np.uint16
    assert not BPE.is_character_level
    assert all(BPE.backend.token_to_id(symbol) is not None for symbol in BYTE_SYMBOLS)
    assert len(TEXT) / len(BPE.encode(TEXT)) > 2
    again = Tokenizer.train_bpe(iter(TEXT.splitlines(keepends=True)), 700)
    assert again.vocab_size == 700
    assert Tokenizer.train_bpe([TEXT], 700).digest == BPE.digest != again.digest
    assert Tokenizer.train_bpe(["un deux un deux"], 700).vocab_size < 270


def ready(path: Path, end: str = EOT_TOKEN, normalise: bool = False, prefix: bool = False) -> Path:
    """A tokenizer as GPT-2's is laid out: other split, end token last."""
    alphabet = sorted(BYTE_SYMBOLS)
    backend = tokenizers.Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if normalise:
        backend.normalizer = normalizers.NFC()  # type: ignore[assignment]
    backend.add_tokens(["    "])
    backend.add_special_tokens([end])
    backend.enable_truncation(8)
    path.mkdir(exist_ok=True)
    backend.save(str(path / "tokenizer.json"))
    return path


def test_a_ready_tokenizer_is_used_as_it_stands(tmp_path: Path) -> None:
    tokenizer = ready_tokenizer(str(ready(tmp_path / "gpt")))
    assert tokenizer.eot_id == tokenizer.vocab_size - 1 == 257
    text = f"Un cœur    bat — {EOT_TOKEN} —     deux"
    ids = tokenizer.encode(text)
    assert 256 in ids  # the added token
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.backend.encode("a").ids[0] == tokenizer.eot_id
    assert ready_tokenizer(str(tmp_path / "gpt" / "tokenizer.json")).digest == tokenizer.digest


def test_a_tokenizer_of_the_hub_comes_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--someone--some-model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots").mkdir()
    ready(place / "snapshots" / ("0" * 40))
    assert ready_tokenizer("someone/some-model").vocab_size == 258
    with pytest.raises(UserError, match=r"--tokenizer: someone/other: the Hub cannot be reached and it is not in the"):
        ready_tokenizer("someone/other")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.mkdir(), r"the folder holds no tokenizer\.json"),
        (lambda folder: None, "expected char, bpe, a folder with tokenizer.json or a Hub name"),
        (lambda folder: ready(folder, end="</s>"), r"has no <\|endoftext\|> token"),
        (lambda folder: ready(folder, normalise=True), "text does not come back from it unchanged"),
        (lambda folder: ready(folder, prefix=True), "text does not come back from it unchanged"),
        (lambda folder: (folder.mkdir(), (folder / "tokenizer.json").write_text("{")), "damaged or not a tokenizer"),
    ],
)
def test_a_tokenizer_of_no_use_is_refused(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "it")
    with pytest.raises(UserError, match=message) as found:
        ready_tokenizer(str(tmp_path / "it"))
    assert str(found.value).startswith("--tokenizer: ")


def test_the_command_trains_and_shows(tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "bpe"
    code, out, err = call("tokenizer", "--data", FABLES, "--vocab-size", 600, "--out-dir", folder, "--longest", 3)
    assert (code, err) == (0, "")
    assert f"train with --tokenizer {folder}" in out
    assert "Vocabulary: 600 tokens (byte-level BPE)" in out
    assert "Longest tokens: '" in out
    assert "Characters per token: 2." in out
    assert "documents come back unchanged" in out
    code, again, _ = call("tokenizer", "--tokenizer", folder, "--data", FABLES, "--longest", 3)
    assert code == 0
    assert again == out.split("\n", 1)[1]
    assert "(characters)" in call("tokenizer", "--tokenizer", "char", "--data", FABLES)[1]
    assert call("tokenizer")[2].startswith("tokenizer: --data: missing")
    assert call("tokenizer", "--data", FABLES, "--vocab-size", 9)[2].startswith("tokenizer: --vocab-size: 9 is too")


def test_the_command_reads_all_its_texts_and_knows_its_kinds(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("un")
    Path("b.txt").write_text("deux")
    code, out, _ = call("tokenizer", "--data", "a.txt", "--data", "b.txt", "--tokenizer", "BPE", "--out-dir", "bpe")
    assert code == 0
    assert "all 2 documents come back" in out
    assert "train with --tokenizer ./bpe\n" in out  # `bpe` alone is the kind
    assert call("tokenizer", "--tokenizer", "./bpe", "--data", "a.txt")[0] == 0
    assert call("tokenizer", "--tokenizer", "")[2] == "tokenizer: --tokenizer: an empty name\n"


def test_training_with_bpe_and_with_a_ready_one(tmp_path: Path, call: Call) -> None:
    out_dir = tmp_path / "out"
    flags = ["--data", FABLES, *TINY, "--max-iters", 2, "--out-dir", out_dir]
    code, _, err = call("train", *flags, "--tokenizer", "bpe", "--vocab-size", 400)
    assert code == 0, err
    config = json.loads((out_dir / "config.json").read_text())
    assert config["vocab_size"] == 400
    assert config["mini_transformer"]["tokenizer"] == "bpe"
    code, out, _ = call("evaluate", "--model-dir", out_dir, "--data", FABLES, "--json", "--device", "cpu")
    assert code == 0
    assert 1 < json.loads(out)["bits_per_character"] < 9
    assert "(--tokenizer: bpe there, char here)" in call("train", *flags)[2]
    assert "--vocab-size: 400 there, 500 here" in call("train", *flags, "--tokenizer", "bpe", "--vocab-size", 500)[2]
    ready(tmp_path / "gpt")
    code, out, err = call("train", *flags, "--tokenizer", tmp_path / "gpt", "--overwrite")
    assert code == 0, err
    assert "vocabulary: 258 tokens" in out
    assert str(tmp_path) not in (out_dir / "config.json").read_text()
    assert call("train", *flags, "--vocab-size", 500)[2].startswith("train: --vocab-size: goes with --tokenizer bpe")
