"""Learning from the predictions of other models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mini_transformer.config import ModelConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.training.distillation import Distillation
from mini_transformer.training.losses import cross_entropy_sum
from mini_transformer.training.passes import Passes
from tests.conftest import FABLES, TINY
from tests.training.test_initialisation import interrupt

Call = Callable[..., tuple[int, str, str]]
SOME = ["--eval-iters", 4, "--eval-interval", 20, "--sample-interval", 0]
FLAGS = ["--data", FABLES, *TINY, "--n-layer", 1, *SOME, "--max-iters", 40, "--seed", 2]
CONFIG = ModelConfig(n_layer=2, n_embd=32, n_head=2, block_size=16).resolve(50)


def some_model(seed: int, dropout: float = 0.0) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(ModelConfig(n_layer=2, n_embd=32, n_head=2, block_size=16, dropout=dropout).resolve(50))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_is_the_cross_entropy_with_the_mixture(weight: float) -> None:
    model, teacher = some_model(0), some_model(1, dropout=0.5).eval()
    inputs_bt, targets_bt = torch.randint(50, (2, 3, 16))
    with torch.no_grad():
        mixture_btv = weight * teacher(inputs_bt).softmax(-1) + (1 - weight) * F.one_hot(targets_bt, 50)
    expected = F.cross_entropy(model(inputs_bt).flatten(0, 1), mixture_btv.flatten(0, 1), reduction="sum")
    expected_gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss, count = Distillation(teacher, weight)(model, inputs_bt, targets_bt)
    assert (loss.item(), count) == (pytest.approx(expected.item(), rel=1e-5), 48)
    for gradient, right in zip(torch.autograd.grad(loss, list(model.parameters())), expected_gradients, strict=True):
        assert torch.allclose(gradient, right, atol=1e-4)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teachers_take_turns() -> None:
    model, teachers = some_model(0), [some_model(i) for i in (1, 2, 3)]
    losses = [Distillation(teacher, 0.5) for teacher in teachers]
    inputs_bt, targets_bt = torch.randint(50, (2, 3, 16))
    passes = Passes(model, model, torch.float32, *losses)
    found = [passes.backward((7, 0, i), range(3), inputs_bt, targets_bt, 1, True).item() for i in range(5)]
    expected = [loss(model, inputs_bt, targets_bt)[0].item() for loss in losses]
    assert found == pytest.approx([*expected, *expected[:2]], rel=1e-5)


def test_without_weight_it_is_the_loss_of_the_text() -> None:
    model, inputs_bt, targets_bt = some_model(0), *torch.randint(50, (2, 3, 16))
    loss, _ = Distillation(some_model(1), 0.0)(model, inputs_bt, targets_bt)
    assert loss.item() == pytest.approx(cross_entropy_sum(model, inputs_bt, targets_bt)[0].item(), rel=1e-5)


def test_a_run_learns_from_its_teacher_and_goes_on_as_if_it_had_not_stopped(
    trained: Path, tmp_path: Path, call: Call
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    flags = [*FLAGS, "--teacher", trained, "--teacher-weight", 0.7]
    code, _, err = call("train", *flags, "--out-dir", whole)
    assert code == 0, err
    interrupt(call, stopped, *flags, "--out-dir", stopped)
    assert call("train", *flags, "--out-dir", stopped)[0] == 0
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert set(json.loads((whole / "run.json").read_text())["fingerprints"]) >= {"teacher"}
    code, _, err = call("train", *FLAGS, "--teacher-weight", 0.7, "--out-dir", whole)
    assert (code, "--teacher: only one of the two runs has it" in err) == (2, True), err
    code, _, err = call("train", *flags[:-4], "--teacher", whole, "--teacher-weight", 0.7, "--out-dir", whole)
    assert (code, "--teacher: the weights are others" in err) == (2, True), err


def test_teachers_that_do_not_suit_are_refused(trained: Path, tmp_path: Path, call: Call) -> None:
    for flags, message in (
        (["--teacher", tmp_path], f"{tmp_path}: config.json is missing: there is no model here (yet)"),
        (["--teacher", trained, "--tokenizer", "bpe", "--vocab-size", 300], f"--teacher: {trained} has another token"),
        (["--teacher", trained, "--block-size", 48], f"--teacher: {trained} has a context of 32 tokens, less than"),
        (["--teacher", trained, "--teacher-weight", 1.5], "--teacher-weight: "),
    ):
        code, _, err = call("train", *FLAGS, *flags, "--out-dir", tmp_path / "out")
        assert (code, err.startswith(f"train: {message}"), err.count("\n")) == (2, True, 1), err
        assert not (tmp_path / "out").exists()
