"""The Python interface, and the examples of docs/python.md as they are written."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mini_transformer
from mini_transformer import UserError
from tests.conftest import FABLES, ROOT, TINY

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)
SHAPE = dict(n_layer=1, n_embd=32, n_head=2, block_size=32, batch_size=4, max_iters=4, device="cpu")


def test_the_examples_of_the_page(tmp_path: Path) -> None:
    text = FABLES.read_text(encoding="utf-8")
    (tmp_path / "fables.txt").write_text(text[:40_000], encoding="utf-8")
    (tmp_path / "other-fables.txt").write_text(text[40_000:50_000], encoding="utf-8")
    assert len(EXAMPLES) == 7
    code = "\n".join(EXAMPLES).replace("max_iters=300", "max_iters=4, n_layer=1, n_embd=32")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    assert "bits per character" in done.stdout
    assert done.stdout.endswith("`max_iter`: unknown setting; did you mean max_iters?\n")


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, mini_transformer; print({'torch', 'numpy', 'tokenizers', 'tqdm'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


def test_training_in_python_is_training_by_command(tmp_path: Path, call) -> None:  # type: ignore[no-untyped-def]
    flags = ["--data", FABLES, "--max-iters", 4, *TINY, "--out-dir", tmp_path / "a"]
    assert call("train", *flags)[0] == 0
    settings = dict(n_layer=2, n_embd=32, n_head=2, block_size=32, batch_size=4, dropout=0.1, device="cpu")
    folder = mini_transformer.train(str(FABLES), tmp_path / "b", max_iters=4, **settings)
    assert folder == tmp_path / "b"
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "a" / "model.safetensors").read_bytes()
    folder = mini_transformer.train([FABLES], tmp_path / "b", max_iters=4, **settings)  # finished: nothing to do
    result = mini_transformer.evaluate(str(folder), FABLES, device="cpu")
    assert f"{result.bits_per_character:.4f}" in call("evaluate", "--model-dir", folder, "--data", FABLES)[1]


def test_recipes_weights_and_other_models_as_on_the_command_line(tmp_path: Path, trained: Path) -> None:
    sources = [f"{FABLES}:0.7", f"{FABLES}:0.3"]
    settings = SHAPE | {"n_layer": 2, "dropout": 0.1}
    mini_transformer.train(sources, tmp_path / "a", recipe="tiny", init_from=str(trained), **settings)
    assert mini_transformer.load(tmp_path / "a", "cpu").model.config.n_layer == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`data`: missing; say which text to train on"),
        ({"data": "none.txt"}, "none.txt: no such file"),
        ({"data": FABLES, "max_iter": 3}, "`max_iter`: unknown setting; did you mean max_iters?"),
        ({"data": FABLES, "max_iters": "many"}, "`max_iters`: 'many': expected a whole number"),
        ({"data": FABLES, "n_head": 7}, "`n_head`: 7 heads do not divide a width (`n_embd`) of 512"),
        ({"data": FABLES, "nproc": 2, "device": "cpu"}, "`nproc`, `gpus`: one process trains in Python"),
        ({"data": FABLES, "recipe": "huge"}, "`recipe`: 'huge' is no recipe"),
    ],
)
def test_errors_name_settings(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        mini_transformer.train(out_dir=tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="there is no such model folder"):
        mini_transformer.load(tmp_path / "none")


def test_an_interruption_saves_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mini_transformer.training import trainer

    step = trainer.Trainer.train_step

    def then_stop(self: trainer.Trainer) -> dict[str, float]:
        values = step(self)
        self.stop.set()
        return values

    monkeypatch.setattr(trainer.Trainer, "train_step", then_stop)
    with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
        mini_transformer.train(FABLES, tmp_path / "out", **SHAPE)
    monkeypatch.undo()
    mini_transformer.train(FABLES, tmp_path / "out", **SHAPE)
    assert (tmp_path / "out" / "generated_text.txt").exists()


@pytest.mark.parametrize("most", [0.0, 1e12])  # operations of an evaluation before the first step
def test_a_run_without_a_finished_step_leaves_its_folder_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: float
) -> None:
    from mini_transformer.training import trainer, validation

    step = trainer.Trainer.train_step

    def stop_first(self: trainer.Trainer) -> dict[str, float]:
        self.stop.set()
        return step(self)

    monkeypatch.setattr(validation, "MAX_FIRST_EVALUATION", most)
    monkeypatch.setattr(trainer.Trainer, "train_step", stop_first)
    with pytest.raises(KeyboardInterrupt, match="before the first step; there is nothing to save"):
        mini_transformer.train(FABLES, tmp_path / "out", **SHAPE)
    assert not list((tmp_path / "out").glob("checkpoints/*"))
    monkeypatch.setattr(trainer.Trainer, "train_step", step)
    mini_transformer.train(FABLES, tmp_path / "out", **SHAPE, lr=1e-3)  # another run, in the same folder
    first = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0]
    assert ("val_loss" in first and '"iteration": 0' in first) == (most > 0)


def test_a_folder_is_free_after_an_error_that_someone_keeps(tmp_path: Path) -> None:
    """A notebook keeps the last error, and with it all that the call had open."""
    mini_transformer.train(FABLES, tmp_path / "out", **SHAPE)
    with pytest.raises(UserError, match="a run with other settings") as kept:
        mini_transformer.train(FABLES, tmp_path / "out", **SHAPE, lr=1e-3)
    mini_transformer.train(FABLES, tmp_path / "out", **SHAPE, lr=1e-3, overwrite=True)
    assert kept.value.__traceback__


def test_minutes_count_from_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that trains one model after another has run for longer than the minutes of each."""
    now, hours = time.monotonic, 3600.0
    monkeypatch.setattr(time, "monotonic", lambda: now() + hours)
    settings = {name: value for name, value in SHAPE.items() if name != "max_iters"}
    mini_transformer.train(FABLES, tmp_path / "out", **settings, max_minutes=0.1)
    assert (tmp_path / "out" / "generated_text.txt").exists()


def test_an_unknown_precision_is_refused(trained: Path) -> None:
    with pytest.raises(UserError, match="`precision`: 'bf16' is none of float32, bfloat16"):
        mini_transformer.load(trained, "cpu", "bf16")
