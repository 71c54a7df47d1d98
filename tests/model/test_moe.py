import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_transformer.config import ModelConfig
from mini_transformer.model import grouped
from mini_transformer.model.moe import Experts, GatherRows, MixtureOfExperts, Router
from mini_transformer.model.swiglu import clamped_swiglu


def mixture(n_experts: int, experts_per_token: int) -> MixtureOfExperts:
    torch.manual_seed(3)
    config = ModelConfig(n_embd=16, n_head=2, n_experts=n_experts, experts_per_token=experts_per_token).resolve(10)
    layer = MixtureOfExperts(config)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def reference(layer: Experts, x_nc: torch.Tensor, weights_nk: torch.Tensor, chosen_nk: torch.Tensor) -> torch.Tensor:
    """The mixture written out, (N, C): every expert computes every token, with weight 0 where it was not chosen."""
    out = torch.zeros_like(x_nc)
    for expert in range(len(layer.down_proj)):
        weight_n = (weights_nk * (chosen_nk == expert)).sum(-1, keepdim=True)
        out = out + weight_n * layer.expert_forward(expert, x_nc)
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, e))), st.integers(1, 40))
def test_sorted_experts_equal_the_reference_with_gradients(shape: tuple[int, int], tokens: int) -> None:
    layer = mixture(*shape)
    x = torch.randn(tokens, 16, requires_grad=True)
    grad = torch.randn(tokens, 16)
    weights, chosen = layer.router(x)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]  # a router of one expert is not trained
    found = layer.experts(x, weights, chosen)
    expected = reference(layer.experts, x, weights, chosen)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(found, wanted, grad, retain_graph=True, allow_unused=True)
    references = torch.autograd.grad(expected, wanted, grad, allow_unused=True)
    for of, one, other in zip(wanted, gradients, references, strict=True):
        one, other = (torch.zeros_like(of) if g is None else g for g in (one, other))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_gradients_are_the_same_each_time_with_two_threads() -> None:
    layer, x = mixture(4, 2), torch.randn(4096, 16)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = set()
        for _ in range(5):
            layer.zero_grad()
            layer(x[None]).square().sum().backward()
            seen.add(tuple(p.grad.double().sum().item() for p in layer.parameters() if p.grad is not None))
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 1


def test_gathering_rows_has_the_right_gradient() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    slots = torch.tensor([4, 0, 5, 1, 2, 3])  # two copies of each row, shuffled
    inverse = slots.argsort()
    assert torch.autograd.gradcheck(lambda x: GatherRows.apply(x, slots // 2, inverse, 2), (x,))


def test_swiglu_is_clamped() -> None:
    big = torch.tensor([1000.0])
    assert clamped_swiglu(big, big) == pytest.approx(8 * 7, rel=1e-4)
    assert clamped_swiglu(big, -big) == pytest.approx(-6 * 7, rel=1e-4)
    assert clamped_swiglu(-big, big) == pytest.approx(0)


def test_router_weighs_the_chosen_and_counts_them_in_training_only() -> None:
    router = Router(ModelConfig(n_embd=16, n_head=2).resolve(10))
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(30, 16)
    weights, chosen = router(x)
    logits = x @ router.weight.T + router.bias
    torch.testing.assert_close(weights, logits.gather(1, chosen).softmax(-1))
    assert (logits.topk(2).indices.sort().values == chosen.sort().values).all()
    assert router.tokens_per_expert is not None
    assert router.tokens_per_expert.tolist() == chosen.flatten().bincount(minlength=4).tolist()
    router(x)
    assert router.tokens_per_expert.sum() == 120
    router.eval()(x)
    assert router.tokens_per_expert.sum() == 120


def relative_errors(layer: MixtureOfExperts, tokens: int, dtype: torch.dtype, device: str) -> list[float]:
    """Of the output and all gradients, computed as `layer` does under autocast, against the reference in float32."""
    layer.to(device)
    x, grad = torch.randn(2, tokens, 16, device=device)
    parameters = [p for p in layer.experts.parameters() if p.requires_grad]
    weights, chosen = (t.detach() for t in layer.router(x))
    x.requires_grad_()
    found, wanted = [], []
    for out, results in ((reference(layer.experts, x, weights, chosen), wanted), (None, found)):
        if out is None:
            with torch.autocast(device, dtype, enabled=dtype is torch.bfloat16):
                out = layer.experts(x, weights, chosen)
        results += [out, *torch.autograd.grad(out, [x, *parameters], grad.to(out.dtype))]
    return [((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("shape", [(4, 2), (6, 3), (2, 2)])
def test_grouped_products_equal_the_reference(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where PyTorch has them too."""
    monkeypatch.setattr(grouped, "suits", lambda *_: torch.bfloat16)
    layer = mixture(*shape)
    with torch.no_grad():
        layer.router.bias[0] = -1e9 if shape[0] > shape[1] else 0.0  # an expert without a token
    assert max(relative_errors(layer, 100, torch.bfloat16, "cpu")) < 0.02


@pytest.mark.parametrize("tokens", [1, 40])
def test_all_experts_equal_the_chosen_ones(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "suits_all", lambda *_: True)
    assert max(relative_errors(mixture(4, 2), tokens, torch.float32, "cpu")) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 40, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_on_cuda_with_gradients(tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "PROVED", True)
    for shape in ((4, 2), (8, 2), (1, 1)):
        layer = mixture(*shape)
        errors = relative_errors(layer, tokens, dtype, "cuda")
        assert max(errors) < (0.02 if dtype is torch.bfloat16 else 1e-4), (shape, errors)
