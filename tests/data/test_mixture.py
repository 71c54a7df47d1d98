"""Weighted sources and replay, from the flags to the batches."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mini_transformer.commands.train import parse_config, sources
from mini_transformer.data.prepare import prepare_data
from mini_transformer.errors import UserError
from tests.conftest import FABLES

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n\n\n".join(name * 400 for _ in range(20)))
    return tmp_path / "a.txt", tmp_path / "b.txt"


def share(config_words: list[object], phase: int, letter: str) -> float:
    data = prepare_data(parse_config([str(word) for word in config_words]))
    batches, wanted = data.phases[phase].batches, data.tokenizer.encode(letter)[0]
    shown = [(batches.batch(i, 10, 32)[0] == wanted).float().mean().item() for i in range(100)]
    return sum(shown) / len(shown)


def test_sources_and_weights(tmp_path: Path) -> None:
    assert sources(["a.txt", "b.txt"], "data") == ((Path("a.txt"), Path("b.txt")), ())
    assert sources(["a.txt:0.7", "hf:some/name:config:3"], "data") == (
        (Path("a.txt"), Path("hf:some/name:config")),
        (0.7, 3.0),
    )
    assert sources(["C:\\texts\\a.txt"], "data")[1] == ()
    odd = tmp_path / "a:1"
    odd.touch()
    assert sources([str(odd)], "data") == ((odd,), ())
    (tmp_path / "a.txt").touch()
    wrong = [([f"{tmp_path / 'a.txt'}:{weight}"], "must be above 0") for weight in ("-1", "0,7", "nan")]
    wrong += [(["a:1", "b"], "a weight, or none"), (["a:0", "b:1"], "must be above 0"), ([":0.5"], "an empty name")]
    for words, message in wrong:
        with pytest.raises(UserError, match=f"^`data`: .*{message}"):
            sources(words, "data")

    assert sources(["7"], "data") == ((Path("7"),), ())
    with pytest.raises(UserError, match=r"^`val_data`: .*a\.txt:0\.5: takes no weight; name the file alone"):
        parse_config(["--data", "a.txt", "--val-data", f"{tmp_path / 'a.txt'}:0.5"])


@pytest.mark.parametrize("in_memory", [0, 10**8])
def test_weights_are_shares_of_the_batches(texts: tuple[Path, Path], tmp_path: Path, in_memory: int) -> None:
    flags = ["--in-memory", in_memory, "--cache-dir", tmp_path / "cache"]
    weighted: list[object] = ["--data", f"{texts[0]}:0.7", "--data", f"{texts[1]}:0.3", *flags]
    assert share(weighted, 0, "a") == pytest.approx(0.7, abs=0.01)
    assert share(["--data", *texts, *flags], 0, "a") == pytest.approx(0.5, abs=0.05)


def test_replay_brings_back_the_first_text(texts: tuple[Path, Path]) -> None:
    flags: list[object] = ["--pretrain-data", texts[0], "--finetune-data", texts[1]]
    assert share(flags, 1, "a") == 0
    assert share([*flags, "--replay", 0.2], 0, "b") == 0
    assert share([*flags, "--replay", 0.2], 1, "a") == pytest.approx(0.2, abs=0.01)


def test_preview_shows_the_second_text_in_the_first_phase(texts: tuple[Path, Path]) -> None:
    flags: list[object] = ["--pretrain-data", texts[0], "--finetune-data", texts[1], "--preview", 0.1]
    assert share(flags, 0, "b") == pytest.approx(0.1, abs=0.01)
    assert share(flags, 1, "a") == 0
    both = [*flags, "--replay", 0.3]
    assert share(both, 0, "b") == pytest.approx(0.1, abs=0.01)
    assert share(both, 1, "a") == pytest.approx(0.3, abs=0.01)


def test_what_is_held_out_is_not_previewed(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    (tmp_path / "c.txt").write_text("\n\n\n".join(letter * 400 for letter in "cdefghijkl"))
    flags: list[object] = ["--pretrain-data", texts[0], "--finetune-data", tmp_path / "c.txt", "--preview", 0.5]
    data = prepare_data(parse_config([str(word) for word in flags]))
    held_out = set(data.validation.documents[0].tolist())
    shown = set(data.phases[0].batches.batch(0, 200, 64)[0].flatten().tolist())
    assert len(shown) == 1 + 1 + 9  # the end of a document, the text of the phase, all but one of the other documents
    assert not held_out & shown


@pytest.mark.parametrize("flag", ["preview", "replay"])
def test_a_share_of_the_other_text_needs_two_phases(call: Call, flag: str) -> None:
    said = call("train", "--data", FABLES, f"--{flag}", 0.2)[2]
    assert said.startswith(f"train: --{flag}: goes with --pretrain-data")


def test_a_small_source_may_be_shorter_than_a_block(tmp_path: Path, texts: tuple[Path, Path], call: Call) -> None:
    (tmp_path / "c.txt").write_text("un mot", encoding="utf-8")
    flags = ["--val-data", texts[1], "--block-size", 64]
    code, out, _ = call("prepare", "--data", f"{texts[0]}:0.9", "--data", f"{tmp_path / 'c.txt'}:0.1", *flags)
    assert code == 0
    assert "8,065 characters, 8,027 tokens, 21 documents" in out
    data = prepare_data(
        parse_config([str(w) for w in ("--data", f"{texts[0]}:0.9", f"{tmp_path / 'c.txt'}:0.1", *flags)])
    )
    assert data.block_size == 64


def test_a_weight_that_gives_nothing_is_refused(texts: tuple[Path, Path], call: Call) -> None:
    code, _, err = call("prepare", "--data", f"{texts[0]}:5000", "--data", f"{texts[1]}:1")
    assert code == 2
    assert err.startswith("prepare: a source has too small a weight: less than one row in 1,000 of the batches;")
