from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from mini_transformer.config import ModelConfig, OptimConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.training.optimizer import decays, make_optimizer, routers, update_router_bias
from mini_transformer.training.schedule import learning_rate


def test_weight_decay_is_for_matrices_only(tiny_config: ModelConfig) -> None:
    model = Decoder(tiny_config)
    without = {name for name, p in model.named_parameters() if not decays(name, p)}
    assert all(name.endswith(("norm.weight", "sinks", "bias")) for name in without)
    assert all(name.endswith(("weight", "_proj")) for name, _ in model.named_parameters() if name not in without)
    optimizer = make_optimizer(model, OptimConfig())
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("bias", [0.5, -0.5])  # everybody's first choice; nobody's
def test_the_load_becomes_even_and_a_dead_expert_revives(bias: float) -> None:
    torch.manual_seed(0)
    model = Decoder(ModelConfig(n_layer=1, n_embd=16, n_head=2, block_size=64, n_experts=4).resolve(20))
    router = routers(model)[0]
    with torch.no_grad():
        router.bias[0] = bias
    ids = torch.randint(20, (8, 64))
    loads = []
    for _ in range(400):
        model(ids)
        loads.append(update_router_bias(model, 5e-3)[0])
        assert not router.tokens_per_expert.any()  # type: ignore[union-attr]
    assert loads[0][0] > 1.9 if bias > 0 else loads[0][0] == 0
    assert 0.7 < sum(load[0] for load in loads[-20:]) / 20 < 1.3
    assert max(sum(load) / 20 for load in zip(*loads[-20:], strict=True)) < 1.3


def test_balancing_without_a_rate_or_a_choice_changes_nothing() -> None:
    for experts, chosen in ((4, 2), (1, 1)):
        shape = ModelConfig(n_layer=1, n_embd=16, n_head=2, block_size=8, n_experts=experts, experts_per_token=chosen)
        model = Decoder(shape.resolve(20))
        before = {name: p.clone() for name, p in model.named_parameters()}
        model(torch.zeros((1, 8), dtype=torch.int64))
        update_router_bias(model, 0.0 if experts > 1 else 1.0)
        assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("iters", [1, 5, 50, 3000])
def test_the_rate_rises_then_falls_towards_zero(iters: int) -> None:
    rates = [learning_rate(i, iters, 1.0, 100) for i in range(iters)]
    top = rates.index(max(rates))
    assert rates[top] == 1.0
    assert top == min(100, iters // 10)
    assert all(0 < a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a > b > 0 for a, b in pairwise(rates[top:]))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_training_step_lowers_the_loss(tiny_config: ModelConfig, kind: str) -> None:
    torch.manual_seed(0)
    model = Decoder(tiny_config)
    optimizer = make_optimizer(model, OptimConfig(optimizer=kind))
    ids = torch.randint(50, (4, 16))
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
