"""The tokenizers that settings name: ready-made ones, and the commands that make and use all kinds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mini_transformer.errors import UserError
from mini_transformer.text.pretrained import load_pretrained
from mini_transformer.text.tokenizer import BYTE_SYMBOLS, EOT_TOKEN
from tests.conftest import FABLES, TINY

Call = Callable[..., tuple[int, str, str]]


def ready_made(path: Path, eot_token: str = EOT_TOKEN, normalise: bool = False, prefix: bool = False) -> Path:
    """A tokenizer laid out like GPT-2's: another pre-tokenizer, the EOT token last."""
    alphabet = sorted(BYTE_SYMBOLS)
    backend = tokenizers.Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if normalise:
        backend.normalizer = normalizers.NFC()  # type: ignore[assignment]
    backend.add_tokens(["    "])
    backend.add_special_tokens([eot_token])
    backend.enable_truncation(8)
    path.mkdir(exist_ok=True)
    backend.save(str(path / "tokenizer.json"))
    return path


def test_a_ready_made_tokenizer_is_used_as_is(tmp_path: Path) -> None:
    tokenizer = load_pretrained(str(ready_made(tmp_path / "gpt")))
    assert tokenizer.eot_id == tokenizer.vocab_size - 1 == 257
    text = f"Un cœur    bat — {EOT_TOKEN} —     deux"
    ids = tokenizer.encode(text)
    assert 256 in ids  # the added token
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.backend.encode("a").ids[0] == tokenizer.eot_id
    assert load_pretrained(str(tmp_path / "gpt" / "tokenizer.json")).fingerprint == tokenizer.fingerprint


def test_a_tokenizer_from_the_hub_comes_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--someone--some-model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots").mkdir()
    ready_made(place / "snapshots" / ("0" * 40))
    assert load_pretrained("someone/some-model").vocab_size == 258
    with pytest.raises(UserError, match=r"`tokenizer`: someone/other: the Hub cannot be reached and it is not in the"):
        load_pretrained("someone/other")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.mkdir(), r"the folder holds no tokenizer\.json"),
        (lambda folder: None, "expected char, bpe, a folder with tokenizer.json or a Hub name"),
        (lambda folder: ready_made(folder, eot_token="</s>"), r"has no <\|endoftext\|> token"),
        (lambda folder: ready_made(folder, normalise=True), "text does not come back from it unchanged"),
        (lambda folder: ready_made(folder, prefix=True), "text does not come back from it unchanged"),
        (lambda folder: (folder.mkdir(), (folder / "tokenizer.json").write_text("{")), "damaged or not a tokenizer"),
    ],
)
def test_a_tokenizer_of_no_use_is_refused(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "it")
    with pytest.raises(UserError, match=message) as found:
        load_pretrained(str(tmp_path / "it"))
    assert str(found.value).startswith("`tokenizer`: ")


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


def test_training_with_bpe_and_with_a_ready_made_one(tmp_path: Path, call: Call) -> None:
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
    ready_made(tmp_path / "gpt")
    code, out, err = call("train", *flags, "--tokenizer", tmp_path / "gpt", "--overwrite")
    assert code == 0, err
    assert "vocabulary: 258 tokens" in out
    assert str(tmp_path) not in (out_dir / "config.json").read_text()
    assert call("train", *flags, "--vocab-size", 500)[2].startswith("train: --vocab-size: goes with --tokenizer bpe")
