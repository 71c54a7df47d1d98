"""Wrong input at the door: one line that says what, where and what to do; exit code 2; nothing written."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mini_transformer import __version__
from mini_transformer.generation.engine import Engine
from mini_transformer.settings import recorded_settings
from tests.conftest import FABLES, ROOT, TINY, spawn

Call = Callable[..., tuple[int, str, str]]
TWO = ("--pretrain-data", FABLES, "--finetune-data", FABLES)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--data: missing; say which text"),
        (["--data", "none.txt"], "none.txt: no such file"),
        (["--data", FABLES, *TWO], "--data: one phase, or"),
        (["--pretrain-data", FABLES], "--finetune-data: missing"),
        (["--data", FABLES, "--max-iters-pretrain", 5], "--max-iters-pretrain: belongs to training in two phases"),
        ([*TWO, "--lr", 0.1], "--lr: belongs to training in one phase (--data); here it is --lr-pretrain and"),
        ([FABLES], f"{FABLES}: there is no flag before it; see --help"),
        (
            ["--data", FABLES, "--dropout", 0, "--dropout-start", 0.1],
            "--dropout-start: goes with a --dropout above 0",
        ),
        (["--data", FABLES, "--n-head", 7], "--n-head: 7 heads do not divide a width (--n-embd) of 512"),
        (["--data", FABLES, "--n-embd", 30, "--n-head", 2], "--n-head: 2 heads do not divide"),
        (["--data", FABLES, "--n-kv-head", 3], "--n-kv-head: 3 does not divide the 8 heads"),
        (["--data", FABLES, "--experts-per-token", 5], "--experts-per-token: 5 is more than the 4 experts"),
        (["--data", FABLES, "--experts-per-token", 1], "--experts-per-token: 1 of 4 would leave the router"),
        (["--data", FABLES, "--expert-hidden", 30], "--expert-hidden: must be a multiple of 4"),
        (["--data", FABLES, "--n-layer", 0], "--n-layer: 0 is too small: at least 1"),
        (["--data", FABLES, "--max-iters", 0], "--max-iters: 0 is too small: at least 1"),
        ([*TWO, "--max-iters-finetune", -3], "--max-iters-finetune: -3 is too small"),
        (["--data", FABLES, "--dropout", 1], "--dropout: 1.0 is too large: at most 0.9"),
        (["--data", FABLES, "--dropout", "nan"], "--dropout: nan is not a number to work with"),
        (["--data", FABLES, "--lr", "inf"], "--lr: inf is not a number to work with"),
        (["--data", FABLES, "--lr", 0], "--lr: 0.0 is too small: it must be above 0"),
        (["--data", FABLES, "--lr", "fast"], "--lr: invalid float value: 'fast'"),
        (["--data", FABLES, "--seed", -1], "--seed: -1 is too small"),
        (["--data", FABLES, "--max-iter", 5], "--max-iter: unknown flag; did you mean --max-iters?"),
        (["--data", FABLES, "--zzz=5"], "--zzz=5: unknown flag; see --help"),
        (["--data", FABLES, "--device", "gpu"], "--device: invalid choice: 'gpu'"),
        (["--data", FABLES, "--device", "cpu", "--gpus", 0], "--gpus 0: goes with --device cuda"),
        (["--data", FABLES, "--gpus", "0,1"], "--gpus 0,1: there is no GPU of id 0 (there is none)"),
        (["--data", FABLES, "--gpus", "99"], "--gpus 99: there is no GPU of id 99 (there is none)"),
        (["--data", FABLES, "--gpus", "first"], "--gpus first: expected the ids of GPUs, such as 0 or 0,1, or all"),
        (["--data", FABLES, "--encoding", "klingon"], "--encoding: 'klingon' is not a known encoding"),
        (["--data", FABLES, "--encoding", ""], "--encoding: an empty name"),
        (["--data", FABLES, "--tokenizer", ""], "--tokenizer: an empty name"),
        (
            ["--data", FABLES, "--tokenizer", "CHAR", "--vocab-size", 300],
            "--vocab-size: goes with --tokenizer bpe, not char",
        ),
        (["--data", FABLES, "--preset", "huge"], "--recipe: 'huge' is no recipe; there are base, fables-10min,"),
        (["--data", FABLES, "--recipe", "tinny"], "--recipe: 'tinny' is no recipe; did you mean tiny?"),
        (["--data", FABLES, "--recipe", "none.toml"], "none.toml: No such file"),
        (["--data", FABLES, "--n_layer", 5], "--n_layer: unknown flag; did you mean --n-layer?"),
        (["--data", FABLES, "--learning_rate=1e-3"], "--learning_rate=1e-3: unknown flag; did you mean --lr?"),
        (["--data", FABLES, "--resume"], "--resume: unknown flag; the same command continues a run"),
        (["--data", FABLES, "--num_train_epochs", 3], "--num_train_epochs: unknown flag; did you mean --epochs?"),
        (["--data", FABLES, "--val-data", "none.txt"], "none.txt: no such file"),
    ],
)
def test_training_refuses(call: Call, tmp_path: Path, flags: list[object], message: str) -> None:
    code, out, err = call("train", *flags, "--out-dir", tmp_path / "out")
    assert code == 2
    assert err.startswith(f"train: {message}"), err
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"\n \n\n", "empty"), (b"abc\xff", "byte 0xff at offset 3"), (b"PK\0\0", "a binary file")],
)
def test_training_refuses_files(call: Call, tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    code, _, err = call("train", "--data", file, "--out-dir", tmp_path / "out")
    assert code == 2
    assert err.startswith(f"train: {file}: ")
    assert message in err
    assert not (tmp_path / "out").exists()


def test_training_refuses_folders_that_cannot_hold_a_model(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    code, _, err = call("train", "--data", FABLES, *TINY, "--out-dir", file)
    assert (code, err) == (2, f"train: --out-dir: {file} is a file, not a folder\n")
    code, _, err = call("train", "--data", FABLES, *TINY, "--out-dir", file / "below")
    assert code == 2
    assert "cannot be written" in err
    code, _, err = call("train", "--data", FABLES, *TINY, "--out-dir", "/proc/out")
    assert code == 2
    assert "cannot be written" in err
    assert file.read_text() == "mine"


def test_an_empty_folder_of_texts_is_refused(call: Call, tmp_path: Path) -> None:
    code, _, err = call("train", "--data", tmp_path, "--out-dir", tmp_path / "out")
    assert (code, err) == (2, f"train: {tmp_path}: the folder holds no .txt file\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model-dir", "none"], "none: there is no such model folder; train.py --out-dir none makes one"),
        (["--max-new-tokens", 0], "--max-new-tokens: 0 is too small"),
        (["--max-new-tokens", 2**63], "--max-new-tokens: the number is too large"),
        (["--top-k", 10**30], "--top-k: the number is too large"),
        (["--temperature", -1], "--temperature: -1.0 is too small"),
        (["--temperature", "nan"], "--temperature: nan is not a number"),
        (["--top-p", 0], "--top-p: 0.0 is too small: it must be above 0"),
        (["--top-p", 1.1], "--top-p: 1.1 is too large"),
        (["--top-k", -1], "--top-k: -1 is too small"),
        (["--num-samples", 0], "--num-samples: 0 is too small"),
        (["--promt", "Un"], "--promt: unknown flag; did you mean --prompt?"),
        (["--start", "Un"], "--start: unknown flag; did you mean --prompt?"),
        (["--max_new_tokens=5"], "--max_new_tokens=5: unknown flag; did you mean --max-new-tokens?"),
        (["--resume"], "--resume: unknown flag; see --help"),
        (["--device", "cpu", "--gpus", 0], "--gpus 0: goes with --device cuda"),
        (["--prompt", "a\ud800"], "the text holds a lone surrogate"),
    ],
)
def test_writing_refuses(call: Call, trained: Path, flags: list[object], message: str) -> None:
    code, out, err = call("generate", "--model-dir", trained, *flags)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"generate: {message}"), err
    assert out == ""


def test_the_largest_numbers_are_only_large(trained: Path) -> None:
    engine, most = Engine.load(trained, torch.device("cpu")), 2**63 - 1
    assert next(engine.stream("Un", most, top_k=most, seed=most))


def test_writing_prints_the_text_alone(call: Call, trained: Path) -> None:
    flags = ["--model-dir", trained, "--max-new-tokens", 40, "--device", "cpu"]
    code, first, err = call("generate", *flags, "--prompt", "Un renard")
    assert code == 0
    assert first.startswith("Un renard")
    seed = re.fullmatch(r"seed (\d+)\n", err)
    assert seed
    code, again, err = call("generate", *flags, "--prompt", "Un renard", "--seed", seed[1])
    assert (code, again, err) == (0, first, "")
    code, empty, _ = call("generate", *flags, "--seed", 1)
    assert code == 0
    assert len(empty) > 30
    code, many, _ = call("generate", *flags, "--seed", 1, "--num-samples", 3, "--prompt", "Le chat")
    assert code == 0
    assert many.count("Le chat") == 3
    assert "\n\n\nLe chat" in many


def test_writing_into_a_closed_pipe_is_no_error(trained: Path) -> None:
    command = f"{sys.executable} generate.py --model-dir {trained} --max-new-tokens 400 --seed 1 | head -c 5"
    result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True)
    assert len(result.stdout) == 5
    assert result.stderr == b""


def test_a_prompt_may_come_from_standard_input(trained: Path, call: Call) -> None:
    flags = ["generate", "--model-dir", trained, "--max-new-tokens", 20, "--seed", 1, "--prompt"]
    command = [sys.executable, "-m", "mini_transformer", *map(str, flags), "-"]
    prompt = "Le loup et l'été,\n\nUn"  # as an editor on Windows saves it, with a last line feed
    saved = f"\ufeff{prompt}\n".replace("\n", "\r\n").encode()
    result = subprocess.run(command, input=saved, cwd=ROOT, capture_output=True)
    assert result.stdout.decode() == call(*flags, prompt)[1]
    refused = subprocess.run(command, input="été".encode("latin-1"), cwd=ROOT, capture_output=True)
    message = "generate: --prompt: standard input is not UTF-8 text (invalid continuation byte at byte 0)\n"
    assert (refused.returncode, refused.stdout, refused.stderr.decode()) == (2, b"", message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [([], "the following arguments are required: --data"), (["--data", "none.txt"], "none.txt: no such file")],
)
def test_measuring_refuses(call: Call, trained: Path, flags: list[object], message: str) -> None:
    code, out, err = call("evaluate", "--model-dir", trained, *flags)
    assert (code, out, err) == (2, "", f"evaluate: {message}\n")


def test_measuring_refuses_an_empty_text(call: Call, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    code, _, err = call("evaluate", "--model-dir", trained, "--data", tmp_path / "empty.txt")
    assert code == 2
    assert "empty.txt: empty: there is nothing to measure" in err


def test_the_command_itself(call: Call) -> None:
    code, out, _ = call()
    assert code == 0
    assert all(name in out for name in ("train", "generate", "evaluate", "demo"))
    assert call("--version")[1] == f"{__version__}\n"
    assert call("trian")[2] == "mini-transformer: trian: unknown command; did you mean train?\n"
    assert call("trian")[0] == 2


@pytest.mark.parametrize("command", ["train", "generate", "generate-data", "evaluate", "demo"])
def test_help_names_every_default(command: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mini_transformer", command, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0
    assert any(flag in result.stdout for flag in ("--out-dir", "--model-dir", "--out FILE"))
    if command == "train":
        words = " ".join(result.stdout.split())
        for default in ("512", "24", "256", "64", "0.2", "10000", "0.0005", "0.0003"):
            assert f"(default: {default})" in words, default


def test_the_mission_is_the_default() -> None:
    from mini_transformer.commands.train import parse_config

    config = parse_config(["--data", str(FABLES)])
    shape = config.model.resolve(300)
    assert (shape.n_layer, shape.n_embd, shape.n_head, shape.block_size, shape.dropout) == (24, 512, 8, 256, 0.2)
    assert (shape.n_experts, shape.experts_per_token, shape.expert_hidden, shape.sliding_window) == (4, 2, 704, 256)
    assert (config.optim.batch_size, config.phases[0].iters, config.phases[0].lr) == (64, 10_000, 5e-4)
    config = parse_config([str(word) for word in TWO])
    assert [(p.name, p.iters, p.lr) for p in config.phases] == [("pretrain", 10_000, 3e-4), ("finetune", 10_000, 5e-4)]
    assert (config.run.eval_interval, config.run.eval_iters) == (100, 200)
    for flag in ("--recipe", "--preset"):
        small = parse_config(["--data", str(FABLES), flag, "laptop", "--n-layer", "2"])
        assert (small.model.n_layer, small.model.n_embd) == (2, 192)


def test_a_recipe_serves_one_phase_and_two() -> None:
    from mini_transformer.commands.train import parse_config

    one = parse_config(["--data", str(FABLES), "--recipe", "tiny", "--lr", "1e-3"])
    assert [(p.iters, p.lr) for p in one.phases] == [(800, 1e-3)]
    two = parse_config([*map(str, TWO), "--recipe", "tiny", "--max-iters-finetune", "5"])
    assert [(p.iters, p.lr) for p in two.phases] == [(800, 1.2e-3), (5, 2e-3)]


def test_a_run_is_repeated_from_its_own_record(tmp_path: Path) -> None:
    from mini_transformer.commands.train import parse_config

    flags = ["--data", f"{FABLES}:0.7", f"{FABLES}:0.3", "--text-field", "body", "--encoding", "latin-1"]
    config = parse_config([*flags, "--recipe", "laptop", "--seed", "3", "--out-dir", str(tmp_path), "--device", "cpu"])
    record = {"finished": True, "settings": recorded_settings(config), "fingerprints": {"train": "ab"}}
    (tmp_path / "run.json").write_text(json.dumps(record | {"environment": {"torch": "2"}}))
    again = parse_config(["--data", str(FABLES), str(FABLES), "--recipe", str(tmp_path / "run.json")])
    assert again.phases == config.phases
    assert (again.model, again.optim, again.text) == (config.model, config.optim, config.text)
    assert (again.run.encoding, again.run.seed, again.run.out_dir) == ("latin-1", 3, Path("out"))
    assert again.fingerprints == {"train": "ab"}


def test_the_scripts_work_from_any_folder(tmp_path: Path) -> None:
    for name in ("train", "generate", "generate_data"):
        script = str(ROOT / f"{name}.py")
        result = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0
        assert result.stdout.startswith(f"usage: {name.replace('_', '-')}")


def test_nothing_heavy_is_loaded_for_help_and_errors() -> None:
    code = "import sys; from mini_transformer import cli; cli.run('train', []); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout == "False\n"


@pytest.mark.parametrize("seconds", [1.0, 1.5, 2.0])
def test_ctrl_c_at_the_start_ends_it_without_a_word(tmp_path: Path, seconds: float) -> None:
    """While libraries are imported, too, some of which would swallow the error of Python."""
    words = ["--data", FABLES, "--out-dir", tmp_path / "out", "--max-iters", 10**6]
    process = spawn(["train.py", *words], ROOT)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode in (-signal.SIGINT, 130), (out, err)
    assert "Traceback" not in err


def test_an_interruption_is_one_line(call: Call, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    def interrupt() -> None:
        with open(tmp_path / "pipe", "wb"):  # waits for the reader, who then waits for what is never written
            os.kill(os.getpid(), signal.SIGINT)
            over.wait(10)

    over = threading.Event()
    threading.Thread(target=interrupt).start()
    assert call("evaluate", "--data", tmp_path / "pipe") == (130, "", "evaluate: interrupted\n")
    over.set()


def test_a_run_is_not_put_where_its_texts_are(call: Call, tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text("Un renard, un loup. " * 100)
    code, _, err = call("train", "--data", tmp_path, "--out-dir", tmp_path, *TINY)
    assert (code, err) == (2, f"train: --out-dir: {tmp_path} is the folder of the texts; choose another one\n")
    (tmp_path / "run.json").write_text("{}")
    code, _, err = call("prepare", "--data", tmp_path)
    assert (code, err[:50]) == (2, f"prepare: {tmp_path}: the folder is that of a run"[:50])
