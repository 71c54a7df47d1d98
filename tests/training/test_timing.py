"""`--max-minutes` and `--epochs`: as many iterations as fit, decided before the first one and kept ever after."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mini_transformer.training.trainer import Trainer
from tests.conftest import TINY, spawn

Call = Callable[..., tuple[int, str, str]]


def settings(out: Path) -> dict[str, object]:
    return json.loads((out / "run.json").read_text())["settings"]


@pytest.fixture
def words(fables: Path, tmp_path: Path) -> list[object]:
    return ["train", "--data", fables, "--out-dir", tmp_path / "out", "--sample-interval", 0, *TINY]


@pytest.mark.slow
def test_a_run_takes_the_minutes_that_it_is_given(words: list[object], tmp_path: Path) -> None:
    started = time.monotonic()
    process = spawn(["-m", "mini_transformer", *words, "--max-minutes", 0.25], tmp_path)
    _, err = process.communicate(timeout=60)
    seconds = time.monotonic() - started
    assert process.returncode == 0, err
    assert 7 < seconds < 20, seconds  # other processes may run beside it
    assert settings(tmp_path / "out")["max_iters"] != 10_000


@pytest.mark.slow
def test_a_killed_run_keeps_its_iterations_and_its_record_repeats_it(words: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = spawn(["-m", "mini_transformer", *words, "--max-minutes", 0.2, "--checkpoint-interval", 20], tmp_path)
    while not list(out.glob("checkpoints/*")):
        assert process.poll() is None
        time.sleep(0.02)
    iterations = settings(out)["max_iters"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert spawn(["-m", "mini_transformer", *words, "--max-minutes", 0.2], tmp_path).wait(60) == 0
    assert settings(out)["max_iters"] == iterations
    again = [word if word != out else tmp_path / "again" for word in words]
    assert spawn(["-m", "mini_transformer", *again, "--recipe", out / "run.json"], tmp_path).wait(60) == 0
    weights = [(folder / "model.safetensors").read_bytes() for folder in (out, tmp_path / "again")]
    assert weights[0] == weights[1]


def test_evaluations_are_tried_out_without_dropout(
    words: list[object], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the masks are for the rows of a step, which a validation batch need not have."""
    training, loss = [], Trainer.validation_loss

    def watched(trainer: Trainer) -> float:
        training.append(trainer.model.training)
        return loss(trainer)

    monkeypatch.setattr(Trainer, "validation_loss", watched)
    assert call(*words, "--max-minutes", 0.1)[0] == 0
    assert set(training) == {False}


def test_a_finished_run_stays_and_its_record_repeats_it(words: list[object], tmp_path: Path, call: Call) -> None:
    minutes = ["--max-minutes", 0.1]
    assert call(*words, *minutes)[0] == 0
    assert "nothing to do" in call(*words, *minutes)[1]
    again = [word if word != tmp_path / "out" else tmp_path / "again" for word in words]
    assert call(*again, "--recipe", tmp_path / "out" / "run.json")[0] == 0
    assert settings(tmp_path / "again") == settings(tmp_path / "out")


def test_phases_keep_the_ratio_of_their_iterations(fables: Path, tmp_path: Path, call: Call) -> None:
    out, phases = tmp_path / "out", ["--pretrain-data", fables, "--finetune-data", fables]
    lengths = ["--max-iters-pretrain", 3000, "--max-iters-finetune", 1000]
    code, _, err = call("train", *phases, *lengths, "--out-dir", out, *TINY, "--max-minutes", 0.1)
    assert code == 0, err
    found = settings(out)
    assert found["max_iters_pretrain"] == pytest.approx(3 * found["max_iters_finetune"], abs=3)


def test_too_few_minutes_leave_nothing_behind(words: list[object], tmp_path: Path, call: Call) -> None:
    code, _, err = call(*words, "--max-minutes", 1e-4)
    assert code == 2
    assert "--max-minutes: 0.0001 minutes are too few: " in err
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_iterations_that_are_asked_for_win_over_the_minutes_of_a_recipe(
    words: list[object], tmp_path: Path, call: Call
) -> None:
    recipe = tmp_path / "minutes.toml"
    recipe.write_text("[settings]\nmax_minutes = 60\n")
    assert call(*words, "--recipe", recipe, "--max-iters", 3)[0] == 0
    assert settings(tmp_path / "out")["max_iters"] == 3


def test_epochs_are_passes_over_the_training_text(words: list[object], tmp_path: Path, call: Call) -> None:
    code, log, err = call(*words, "--epochs", 2)
    assert code == 0, err
    assert ", 2.0 epochs" in log
    out, again = tmp_path / "out", tmp_path / "again"
    iterations = settings(out)["max_iters"]
    assert call(*words, "--max-iters", iterations)[0] == 0  # the same run, which is finished
    assert call(*words[:3], "--out-dir", again, *words[5:], "--recipe", out / "run.json")[0] == 0
    assert (out / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_epochs_of_a_recipe_give_way_to_other_lengths(words: list[object], tmp_path: Path, call: Call) -> None:
    recipe = tmp_path / "epochs.toml"
    recipe.write_text("[settings]\nepochs = 60\n")
    assert call(*words, "--recipe", recipe, "--max-iters", 3)[0] == 0
    assert settings(tmp_path / "out")["max_iters"] == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max-iters", 3], "--epochs: says how long a run is, as --max-iters does; give one of them"),
        (["--max-minutes", 3], "--epochs: says how long a run is, as --max-minutes does; give one of them"),
    ],
)
def test_one_length_is_enough(words: list[object], call: Call, more: list[object], message: str) -> None:
    code, _, err = call(*words, "--epochs", 2, *more)
    assert code == 2
    assert message in err


def test_epochs_are_of_one_phase(fables: Path, call: Call) -> None:
    code, _, err = call("train", "--pretrain-data", fables, "--finetune-data", fables, "--epochs", 2)
    assert code == 2
    assert "--epochs: belongs to training in one phase (--data)" in err
