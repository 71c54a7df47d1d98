"""The temperature that is fitted after training, against a search over many."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mini_transformer import cli
from mini_transformer.config import ModelConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.training import trainer
from mini_transformer.training.calibration import GAIN, LIMITS, calibrate
from tests.conftest import FABLES, TINY


def decoder() -> Decoder:
    torch.manual_seed(0)
    shape = ModelConfig(n_layer=1, n_embd=16, n_head=2, block_size=32, dropout=0.0).resolve(8)
    model = Decoder(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # as sure as a trained one
    return model


def drawn_from(model: Decoder, factor: float) -> tuple[Tensor, Tensor]:
    """Inputs, and targets drawn from what the model predicts, its logits times a factor."""
    ids_bt = torch.randint(8, (256, 32))
    with torch.no_grad():
        probabilities_nv = (factor * model(ids_bt)).softmax(-1).flatten(0, 1)
    return ids_bt, torch.multinomial(probabilities_nv, 1).view(256, 32)


def loss_of(model: Decoder, ids_bt: Tensor, targets_bt: Tensor) -> float:
    with torch.no_grad():
        return model(ids_bt, targets_bt=targets_bt).item() / targets_bt.numel()


@pytest.mark.parametrize("truth", [0.72, 0.8, 0.9])
def test_the_factor_is_that_of_the_text(truth: float) -> None:
    model = decoder()
    text = drawn_from(model, truth)
    before, original = loss_of(model, *text), copy.deepcopy(model)
    factor, loss = calibrate(model, original.state_dict(), before, lambda: loss_of(model, *text))
    assert loss == loss_of(model, *text) < before
    assert torch.equal(model.norm.weight, original.norm.weight * factor)
    least = min(loss_of(scaled(original, n / 100), *text) for n in range(70, 111))
    assert loss == pytest.approx(least, abs=1e-3)
    assert factor == pytest.approx(truth, abs=0.03)


def scaled(model: Decoder, factor: float) -> Decoder:
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.norm.weight.mul_(factor)
    return model


def test_a_model_that_is_right_stays_as_it_is() -> None:
    model = decoder()
    text = drawn_from(model, 1.0)
    before, weight = loss_of(model, *text), model.norm.weight.clone()
    weights = copy.deepcopy(model.state_dict())
    assert calibrate(model, weights, before, lambda: loss_of(model, *text)) == (1.0, before)
    assert torch.equal(model.norm.weight, weight)


@pytest.mark.parametrize("truth", [0.2, 3.0])
def test_no_text_makes_it_more_than_the_limits(truth: float) -> None:
    model = decoder()
    text = drawn_from(model, truth)
    before, weights = loss_of(model, *text), copy.deepcopy(model.state_dict())
    factor, loss = calibrate(model, weights, before, lambda: loss_of(model, *text))
    assert factor in LIMITS
    assert loss < before - GAIN


def test_a_run_says_it_and_nothing_but_the_last_norm_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--data", str(FABLES), *TINY, "--max-iters", "30", "--lr", "0.01", "--cache-dir", str(tmp_path)]
    assert cli.run("train", [*flags, "--out-dir", str(tmp_path / "a")]) == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Calibrated: "))
    monkeypatch.setattr(trainer, "calibrate", lambda model, weights, loss, measure: (1.0, loss))
    assert cli.run("train", [*flags, "--out-dir", str(tmp_path / "b")]) == 0
    assert "Calibrated" not in capsys.readouterr().out
    weights, plain = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    factors = weights.pop("model.norm.weight") / plain.pop("model.norm.weight")
    assert said.startswith(f"Calibrated: logits divided by {1 / factors.mean().item():.2f}, validation ")
    assert factors.max().item() == pytest.approx(factors.min().item(), rel=1e-6)
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
