"""The decoder against numbers that `transformers` made (see tests/golden/README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from mini_transformer.config import SamplingConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.pretrained import read_model
from mini_transformer.model.sdpa import sdpa_reference
from tests.conftest import generate_one, generate_without_cache

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = ["a_moe_alternating", "b_dense_full_tied", "c_yarn_top1_mqa"]


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Decoder, dict[str, Tensor]]:
    folder = GOLDEN / request.param
    return read_model(folder, torch.device("cpu")), load_file(folder / "golden.safetensors")


def test_logits_hidden_states_router_and_loss(case: tuple[Decoder, dict[str, Tensor]]) -> None:
    model, golden = case
    hidden: list[Tensor] = []
    routed: list[Tensor] = []
    model.embed_tokens.register_forward_hook(lambda *a: hidden.append(a[2]))
    for layer in model.layers[:-1]:
        layer.register_forward_hook(lambda *a: hidden.append(a[2]))
    model.norm.register_forward_hook(lambda *a: hidden.append(a[2]))
    for layer in model.layers:
        layer.mlp.router.register_forward_hook(lambda m, given, _: routed.append(F.linear(given[0], m.weight, m.bias)))
    logits = model(golden["input_ids"])
    assert distance(logits, golden["logits"]) <= 1e-5
    assert len(hidden) == model.config.n_layer + 1
    for i, state in enumerate(hidden):
        assert distance(state, golden[f"hidden_states.{i}"]) <= 1e-5
    assert len(routed) == model.config.n_layer
    for i, router_logits in enumerate(routed):
        assert distance(router_logits, golden[f"router_logits.{i}"].view(router_logits.shape)) <= 1e-5
    loss = F.cross_entropy(logits.flatten(0, 1), golden["labels"].flatten())
    assert distance(loss, golden["loss"]) <= 1e-5


def test_attention_probabilities(case: tuple[Decoder, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    model, golden = case
    probabilities: list[Tensor] = []

    def watched(*args: Tensor) -> Tensor:
        out, seen = sdpa_reference(*args)  # type: ignore[arg-type]
        probabilities.append(seen)
        return out

    monkeypatch.setattr("mini_transformer.model.attention.sdpa_with_sinks", watched)
    model(golden["input_ids"])
    assert len(probabilities) == model.config.n_layer
    for i, found in enumerate(probabilities):
        assert distance(found, golden[f"attentions.{i}"]) <= 1e-5


def test_gradients(case: tuple[Decoder, dict[str, Tensor]]) -> None:
    model, golden = case
    expected = {name.removeprefix("grad."): g for name, g in golden.items() if name.startswith("grad.")}
    if not expected:
        pytest.skip("no gradients in this case")
    logits = model(golden["input_ids"])
    F.cross_entropy(logits.flatten(0, 1), golden["labels"].flatten()).backward()
    compared = 0
    for name, parameter in model.named_parameters():
        there = expected.get(name if name.startswith("lm_head") else f"model.{name}")
        if parameter.grad is None:  # the router of a dense model
            assert there is None or not there.any()
            continue
        found = parameter.grad
        if "gate_up_proj" in name:
            found = torch.stack(found.chunk(2, dim=-1), dim=-1).flatten(-2)
        assert there is not None
        assert distance(found, there) <= 1e-4, name
        compared += 1
    assert compared >= 20


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_continuation(case: tuple[Decoder, dict[str, Tensor]], use_cache: bool) -> None:
    generate = generate_one if use_cache else generate_without_cache
    model, golden = case
    for row in golden["greedy_ids"].reshape(-1, golden["greedy_ids"].shape[-1]).tolist():
        tokens = generate(model, row[:6], SamplingConfig(temperature=0), np.random.default_rng(0), [])
        assert [next(tokens) for _ in row[6:]] == row[6:]
