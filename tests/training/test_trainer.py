"""Training against the plain loop, and runs that are stopped, killed and continued."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mini_transformer import cli
from mini_transformer.config import ModelConfig, OptimConfig, Phase, RunConfig, TrainConfig
from mini_transformer.data.prepare import prepare_data
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.pretrained import read_suppress_tokens
from mini_transformer.text.tokenizer import Tokenizer
from mini_transformer.training.optimizer import make_optimizer, update_router_bias
from mini_transformer.training.run import stop_on_signal
from mini_transformer.training.run_folder import RunFolder
from mini_transformer.training.schedule import learning_rate
from mini_transformer.training.trainer import Stopped, Trainer
from tests.conftest import FABLES, ROOT, TINY, spawn

Call = Callable[..., tuple[int, str, str]]
SHORT = ["--max-iters", "24", "--eval-interval", "8", "--checkpoint-interval", "1", "--sample-interval", "0"]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def make_trainer(tmp_path: Path, model: Decoder, config: TrainConfig) -> Trainer:
    with stop_on_signal() as stop:
        return Trainer(config, prepare_data(config), model, RunFolder(tmp_path), torch.float32, stop)


@pytest.mark.parametrize("micro_batch_size", [6, 4, 1])
def test_steps_equal_the_plain_loop_whatever_the_micro_batch(
    tmp_path: Path, tiny_config, micro_batch_size: int
) -> None:  # type: ignore[no-untyped-def]
    optim = OptimConfig(batch_size=6, warmup_iters=1)
    run = RunConfig(out_dir=tmp_path, device="cpu", micro_batch_size=micro_batch_size)
    config = TrainConfig((Phase("train", (FABLES,), 10, 1e-3),), tiny_config, optim, run)
    data = prepare_data(config)
    shape = tiny_config.resolve(data.tokenizer.vocab_size)
    torch.manual_seed(0)
    model = Decoder(shape)
    plain = Decoder(shape)
    plain.load_state_dict(model.state_dict())
    trainer = make_trainer(tmp_path, model, config)
    optimizer = make_optimizer(plain, optim)
    for i in range(10):
        found = trainer.train_step()
        trainer.progress.iteration += 1
        inputs, targets = data.phases[0].batches.batch(i, 6, 16)
        loss = F.cross_entropy(plain(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), optim.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(i, 10, 1e-3, 1)
        optimizer.step()
        update_router_bias(plain, optim.balance_rate)
        assert found["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_no_number_stops_the_step_before_the_weights_change(tmp_path: Path, tiny_config) -> None:  # type: ignore[no-untyped-def]
    run = RunConfig(out_dir=tmp_path, device="cpu")
    config = TrainConfig((Phase("train", (FABLES,), 10, 1e-3),), tiny_config, OptimConfig(batch_size=2), run)
    model = Decoder(tiny_config.resolve(prepare_data(config).tokenizer.vocab_size))
    trainer = make_trainer(tmp_path, model, config)
    trainer.train_step()
    trainer.progress.iteration = 1
    with torch.no_grad():
        model.norm.weight[0] = float("inf")
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(Exception, match=r"iteration 1 of phase train: the loss is (nan|inf).*weights were not changed"):
        trainer.train_step()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_the_same_command_gives_the_same_weights_and_the_seed_others(tmp_path: Path, call: Call) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        flags = ["--data", FABLES, *SHORT, *TINY, "--out-dir", tmp_path / name, "--seed", seed]
        assert call("train", *flags)[0] == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")
    assert (tmp_path / "a" / "generated_text.txt").read_bytes() == (tmp_path / "b" / "generated_text.txt").read_bytes()


def test_three_kills_leave_the_same_weights_as_none(tmp_path: Path) -> None:
    text = FABLES.read_text(encoding="utf-8")
    (tmp_path / "first.txt").write_text(text[: len(text) // 2], encoding="utf-8")
    (tmp_path / "second.txt").write_text(text[len(text) // 2 :], encoding="utf-8")
    command = [ROOT / "train.py", "--pretrain-data", "first.txt", "--finetune-data", "second.txt", *TINY]
    command += ["--max-iters-pretrain", "40", "--max-iters-finetune", "40", "--eval-interval", "20"]
    command += ["--checkpoint-interval", "5", "--tokenizer", "bpe", "--vocab-size", "400", "--bpe-dropout", "0.1"]
    command += ["--preview", "0.1", "--dropout-start", "0", "--optimizer", "muon"]
    whole = spawn([*command, "--out-dir", "whole"], tmp_path)
    assert whole.wait() == 0, whole.stderr and whole.stderr.read()
    continued = []
    for kill in range(4):
        process = spawn([*command, "--out-dir", "killed"], tmp_path)
        if kill < 3:
            seen = newest = states(tmp_path / "killed")
            while process.poll() is None and len(newest - seen) == 0:
                time.sleep(0.005)
                newest = states(tmp_path / "killed")
            process.send_signal(signal.SIGKILL)
        out, err = process.communicate()
        continued += re.findall(r"Resuming from the checkpoint at \w+ (\d+)", out)
    assert process.returncode == 0, err
    assert len(continued) == 3
    assert all(int(iteration) > 0 for iteration in continued[:1])
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.temporary"))


def states(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").glob("*.pt")}


def metrics(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("tokens_per_second", "flop_utilisation")} for line in lines]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_run_saves_says_so_and_continues(tmp_path: Path, number: signal.Signals) -> None:
    command = [ROOT / "train.py", "--data", FABLES, *TINY, "--out-dir", "out", "--max-iters", "100000"]
    process = spawn([*command, "--checkpoint-interval", "100000"], tmp_path)
    while not (tmp_path / "out" / "model.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Stopped; the state is saved in out" in out
    assert err == ""
    assert len(states(tmp_path / "out")) == 1
    again = spawn(command, tmp_path)
    assert again.stdout is not None
    line = ""
    while "Resuming" not in line:
        line = again.stdout.readline()
        assert line or again.poll() is None
    again.kill()
    again.communicate()
    assert re.search(r"Resuming from the checkpoint at train [1-9]", line)


def test_a_run_that_is_stopped_while_it_writes_its_text_ends_later(
    tmp_path: Path, tiny_config: ModelConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig((Phase("train", (FABLES,), 1, 1e-3),), tiny_config, run=RunConfig(tmp_path, device="cpu"))
    model = Decoder(tiny_config.resolve(prepare_data(config).tokenizer.vocab_size))
    trainer = make_trainer(tmp_path, model, config)
    sample_text = trainer.sample_text
    trainer.sample_text = lambda tokens: (trainer.stop.set(), sample_text(tokens))[1]  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        trainer.fit()
    assert len(states(tmp_path)) == 1
    assert not (tmp_path / "generated_text.txt").exists()
    again = make_trainer(tmp_path, model, config)
    again.fit()
    assert "Resuming from the checkpoint at train 1\n" in capsys.readouterr().out
    assert (tmp_path / "generated_text.txt").read_text(encoding="utf-8").strip()


def test_a_finished_run_is_left_alone(trained: Path, tmp_path: Path, call: Call) -> None:
    folder = shutil.copytree(trained, tmp_path / "out")
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    flags = ["--data", FABLES, "--max-iters", 20, "--eval-interval", 10, "--lr", 3e-3, "--out-dir", folder, *TINY]
    code, out, _ = call("train", *flags)
    assert code == 0
    assert "this run is finished" in out
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_another_run_in_the_folder_is_refused_unless_overwritten(trained: Path, tmp_path: Path, call: Call) -> None:
    folder = shutil.copytree(trained, tmp_path / "out")
    (folder / "mine.txt").write_text("keep")
    flags = ["--data", FABLES, "--max-iters", 2, "--eval-interval", 10, "--lr", 3e-3, "--out-dir", folder, *TINY]
    code, _, err = call("train", *flags)
    assert code == 2
    assert "holds a run with other settings (--max-iters: 20 there, 2 here)" in err
    assert weights(folder) == weights(trained)
    other = tmp_path / "other.txt"
    other.write_text("Un autre texte. " * 100)
    flags[1] = other
    assert "(--data: the text is another one)" in call("train", *flags[:2], "--max-iters", 20, *flags[4:])[2]
    assert call("train", *flags, "--overwrite")[0] == 0
    assert weights(folder) != weights(trained)
    assert (folder / "mine.txt").read_text() == "keep"


def test_a_run_is_repeated_by_its_own_record(trained: Path, tmp_path: Path, call: Call) -> None:
    flags = ["--recipe", trained / "run.json", "--device", "cpu", "--out-dir", tmp_path / "again", "--data"]
    code, _, err = call("train", *flags, FABLES)
    assert (code, err) == (0, "")
    assert weights(tmp_path / "again") == weights(trained)
    other = tmp_path / "other.txt"
    other.write_text("Un autre texte. " * 100)
    flags[5] = tmp_path / "other"
    code, _, err = call("train", *flags, other)
    assert code == 2
    assert err == (
        "train: --recipe: it is the record of a run with another train text; the same run needs the same one\n"
    )
    assert not (tmp_path / "other").exists()


def test_a_foreign_model_is_not_overwritten_by_chance(tmp_path: Path, call: Call) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    code, _, err = call("train", "--data", FABLES, *SHORT, *TINY, "--out-dir", tmp_path)
    assert code == 2
    assert "holds model.safetensors, but no run of ours" in err
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_best_weights_are_kept_and_overfitting_is_said(tmp_path: Path, call: Call) -> None:
    text = tmp_path / "text.txt"
    text.write_text(FABLES.read_text(encoding="utf-8")[:1500], encoding="utf-8")
    flags = ["--data", text, *TINY, "--dropout", 0, "--max-iters", 240, "--eval-interval", 10, "--lr", 1e-2]
    code, out, _ = call("train", *flags, "--out-dir", tmp_path / "out")
    assert code == 0
    assert "overfitting: validation has not improved since iteration" in out
    measured = [m for m in metrics(tmp_path / "out") if "val_loss" in m]
    best = min(measured, key=lambda m: m["val_loss"])  # type: ignore[arg-type,return-value]
    assert best is not measured[-1]
    *_, calibrated = metrics(tmp_path / "out")
    assert calibrated["temperature"] > 1  # it is too sure of itself
    assert calibrated["calibrated_val_loss"] < best["val_loss"]
    assert f"of validation loss {calibrated['calibrated_val_loss']:.3f}" in out


def test_an_early_stop_ends_a_phase(tmp_path: Path, call: Call) -> None:
    text = tmp_path / "text.txt"
    text.write_text(FABLES.read_text(encoding="utf-8")[:1500], encoding="utf-8")
    flags = ["--pretrain-data", text, "--finetune-data", text, *TINY, "--dropout", 0, "--eval-interval", 10]
    flags += ["--max-iters-pretrain", 500, "--max-iters-finetune", 20, "--lr-pretrain", 1e-2, "--keep-checkpoints"]
    measured = {}
    for patience in (0, 3):
        out = tmp_path / f"out{patience}"
        assert call("train", *flags, "--early-stop", patience, "--out-dir", out)[0] == 0
        measured[patience] = [m for m in metrics(out) if "val_loss" in m]
    whole, early = measured[0], measured[3]
    pretrain = [m for m in early if m["phase"] == "pretrain"]
    assert pretrain == whole[: len(pretrain)]
    best = min(pretrain, key=lambda m: m["val_loss"])  # type: ignore[arg-type,return-value]
    assert pretrain[-1]["iteration"] == best["iteration"] + 30 < 500  # type: ignore[operator]
    assert early[-1]["iteration"] == 20
    assert "nothing to do" in call("train", *flags, "--early-stop", 3, "--out-dir", tmp_path / "out3")[1]


def test_two_phases_share_a_tokenizer_and_the_second_starts_from_the_best(tmp_path: Path, call: Call) -> None:
    first = tmp_path / "first.txt"
    first.write_text("ABCÉ€ " * 300, encoding="utf-8")
    flags = ["--pretrain-data", first, "--finetune-data", FABLES, *TINY, "--max-iters-pretrain", 6]
    code, _, err = call("train", *flags, "--max-iters-finetune", 6, "--out-dir", tmp_path / "out")
    assert code == 0, err
    measured = [m for m in metrics(tmp_path / "out") if "val_loss" in m]
    assert [(m["phase"], m["iteration"]) for m in measured] == [
        ("pretrain", 0),
        ("pretrain", 6),
        ("finetune", 0),
        ("finetune", 6),
    ]
    assert measured[2]["val_loss"] == min(m["val_loss"] for m in measured[:2])  # type: ignore[type-var]
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert len(tokenizer.encode("É€")) == 2  # characters that only the first phase has
    suppressed = read_suppress_tokens(tmp_path / "out")
    assert not set(suppressed) & set(tokenizer.encode("É€renard").tolist())


def test_a_short_text_shrinks_the_block(tmp_path: Path, call: Call) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Un renard passa. " * 2)
    code, out, err = call("train", "--data", text, *TINY, *SHORT, "--out-dir", tmp_path / "out")
    assert code == 0, err
    assert "The text is short: the block shrinks from 32 to 31 tokens" in out
    for written, size in (("Ah !", "4 characters"), ("A", "1 character")):
        text.write_text(written)
        code, _, err = call("train", "--data", text, *TINY, *SHORT, "--out-dir", tmp_path / "none")
        assert code == 2
        assert err.startswith(f"train: {text}: too little text: {size} to train on; training and validation need")
        assert err.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_a_damaged_checkpoint_is_named(trained: Path, tmp_path: Path, call: Call) -> None:
    flags = ["--data", FABLES, *SHORT, *TINY, "--out-dir", tmp_path, "--keep-checkpoints", "--keep", 1]
    assert call("train", *flags)[0] == 0
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"finished": False}))
    (state,) = (tmp_path / "checkpoints").glob("*.pt")
    state.write_bytes(state.read_bytes()[:1000])
    code, _, err = call("train", *flags)
    assert code == 2
    assert f"{state.name}: damaged" in err


def test_output_is_lines_without_a_terminal(tmp_path: Path) -> None:
    command = [ROOT / "train.py", "--data", FABLES, *SHORT, *TINY, "--out-dir", tmp_path / "out"]
    result = subprocess.run([cli.sys.executable, *map(str, command)], capture_output=True, encoding="utf-8", check=True)
    assert result.stderr == ""
    assert "\r" not in result.stdout
    assert re.search(
        r"^train 8/24: training \d\.\d+, validation \d\.\d+ \(\d\.\d+ bits per character", result.stdout, re.M
    )
