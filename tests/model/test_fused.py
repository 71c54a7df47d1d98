"""The fused halves of a block and the fused loss against the plain code, gradients included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from mini_transformer.config import ModelConfig, RopeConfig
from mini_transformer.model import fused
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.dropout import seed_dropout
from mini_transformer.model.fused import experts, loss

YARN = RopeConfig(factor=4.0, original_context=16)


def make(seed: int = 0, **shape: object) -> Decoder:
    """A model in training whose weights are so large that activations are clamped."""
    torch.manual_seed(seed)
    config = ModelConfig(**({"block_size": 32, "n_layer": 2, "n_embd": 32, "n_head": 4, "dropout": 0.3} | shape))  # type: ignore[arg-type]
    model = Decoder(config.resolve(50)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return model


def gradients(model: Decoder, output: Tensor, inputs: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Of the input and of all parameters that have one."""
    output.backward(grad)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"input": inputs.grad}
    model.zero_grad()
    return found


def assert_equal(model: Decoder, rows: int, tokens: int) -> None:
    """The first block, plain and fused, on the same input with the same dropout."""
    block, rotary = model.layers[0], (model.cos[:tokens], model.sin[:tokens])
    x, grad = torch.randn(rows, tokens, model.config.n_embd), torch.randn(rows, tokens, model.config.n_embd)
    results = []
    for way in (block.forward, block.fused):
        inputs = x.clone().requires_grad_()
        seed_dropout(model, (0,), range(rows))
        output = way(inputs, rotary)
        counts = block.mlp.router.tokens_per_expert
        block.mlp.router.tokens_per_expert = None
        results.append((output.detach(), counts, gradients(model, output, inputs, grad)))
    (plain, plain_counts, plain_grads), (quick, counts, grads) = results
    assert torch.equal(counts, plain_counts)
    assert grads.keys() == plain_grads.keys()
    # what nearly cancels out, as where attention has made its choice, is as exact as the parts of it were
    floor = 1e-2 * max(grad.abs().max() for grad in plain_grads.values())
    for name, wanted in (plain_grads | {"output": plain}).items():
        scale = torch.maximum(wanted.abs().max(), floor)
        got = (grads | {"output": quick})[name]
        torch.testing.assert_close(got / scale, wanted / scale, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n_experts": 1},
        {"n_experts": 7, "experts_per_token": 3},
        {"n_kv_head": 2},
        {"n_kv_head": 1, "sliding_window": 5},
        {"dropout": 0.0, "rope": YARN},
        {"rope": RopeConfig(kind="default", theta=100.0)},
    ],
    ids=str,
)
def test_a_block_is_the_plain_one(shape):
    assert_equal(make(**shape), rows=3, tokens=32)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(1, 5), st.integers(2, 32), st.sampled_from([1, 2, 5]), st.sampled_from([1, 4]))
def test_any_size_is_the_plain_one(seed, rows, tokens, experts, kv_heads):
    assert_equal(make(seed, n_experts=experts, n_kv_head=kv_heads, sliding_window=7), rows, tokens)


def test_chunks_do_not_matter(monkeypatch):
    monkeypatch.setattr(experts, "CHUNK", 10)
    monkeypatch.setattr(experts, "GRAIN", 7)
    assert_equal(make(), rows=3, tokens=32)


def test_an_expert_without_tokens_gets_no_gradient():
    model = make(dropout=0.0)
    with torch.no_grad():
        model.layers[0].mlp.router.bias[2] = -10000
    assert_equal(model, rows=2, tokens=16)
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    assert not model.layers[0].mlp.experts.down_proj.grad[2].any()


@pytest.mark.parametrize("shape", [{}, {"tie_embeddings": True}, {"n_experts": 1}], ids=str)
def test_the_loss_is_the_cross_entropy_of_the_logits(shape, monkeypatch):
    model = make(**shape, dropout=0.0)
    monkeypatch.setattr(loss, "LOGITS", 50 * 17)
    x, y = torch.randint(50, (2, 3, 32))
    grads = []
    for value in (cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum"), model(x, targets_bt=y)):
        (value * 0.1).backward()
        grads.append([value.item()] + [p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad(set_to_none=True)
    assert grads[1][0] == pytest.approx(grads[0][0], rel=1e-6)
    for quick, plain in zip(grads[1][1:], grads[0][1:], strict=True):
        torch.testing.assert_close(quick, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())


def test_the_same_step_gives_the_same_bits():
    model = make(dropout=0.0)
    x, y = torch.randint(50, (2, 8, 32))
    seen = []
    for _ in range(3):
        model(x, targets_bt=y).backward()
        seen.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad(set_to_none=True)
    assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other, strict=True))


def test_without_gradients_it_is_the_same_loss():
    model = make(dropout=0.0)
    x, y = torch.randint(50, (2, 3, 32))
    with torch.no_grad():
        without = model(x, targets_bt=y)
    assert torch.equal(without, model(x, targets_bt=y).detach())


def test_other_precisions_take_the_plain_code():
    x = torch.randn(1, 4, 32)
    assert fused.suits(x)
    assert not fused.suits(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert fused.suits(x)
    with torch.autocast("cpu", torch.float16):
        assert not fused.suits(x)


@pytest.mark.parametrize("shape", [{}, {"n_experts": 1}, {"n_kv_head": 2, "sliding_window": 5}], ids=str)
def test_products_in_bfloat16_are_close(shape):
    model = make(**shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    block, rotary = model.layers[0], (model.cos, model.sin)
    attention, mlp = block.self_attn, block.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    x, grad = torch.randn(2, 4, 32, 32)
    for half in ("attention", "experts", "loss"):
        found = []
        for low in (False, True):
            seed_dropout(model, (0,), range(4))
            inputs = x.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                if half == "loss":
                    targets = torch.arange(4 * 32).view(4, 32) % 50
                    weights = (model.norm.eps, model.norm.weight, model.lm_head.weight)
                    output = fused.apply(fused.HeadLoss, inputs, targets, *weights)
                elif half == "attention":
                    norm = block.input_layernorm
                    weights = [
                        parameter for projection in projections for parameter in (projection.weight, projection.bias)
                    ]
                    more = (rotary, attention.window, norm.eps, norm.weight, *weights, attention.sinks)
                    output = fused.apply(fused.AttentionHalf, inputs, block.attention_dropout.mask(x), *more)
                else:
                    norm, router = block.post_attention_layernorm, mlp.router
                    more = (norm.eps, router.experts_per_token, norm.weight, router.weight, router.bias)
                    output, _ = fused.apply(
                        fused.ExpertsHalf, inputs, block.expert_dropout.mask(x), *more, *mlp.experts.parameters()
                    )
            grads = gradients(model, output, inputs, grad if output.ndim else torch.ones(()))
            assert output.dtype is torch.float32
            assert all(g.dtype is torch.float32 for g in grads.values())
            found.append(grads | {"output": output.detach()})
        exact, close = found
        for name, wanted in exact.items():
            error = (close[name] - wanted).norm() / wanted.norm().clamp_min(1e-6)
            assert error < 0.03, (half, name, error)
