import pytest
import torch
from torch import Tensor

from mini_transformer.model import sdpa_cuda
from mini_transformer.model.sdpa import sdpa_reference, sdpa_with_sink_key, sdpa_with_sinks, sliding_window_bias


def inputs(B: int, H: int, G: int, T: int, D: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(T * H + D)
    shapes = ((B, H, T, D), (B, G, T, D), (B, G, T, D), (H,))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def results(function: object, given: list[Tensor], window: int) -> list[Tensor]:
    out = function(*given, window)  # type: ignore[operator]
    grad = torch.sin(torch.arange(out.numel(), dtype=torch.float32)).view(out.shape)
    return [out, *torch.autograd.grad(out, given, grad.to(out))]


@pytest.mark.parametrize(("H", "G"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize(("T", "window"), [(1, 8), (2, 1), (17, 17), (33, 8), (64, 1000)])
def test_fast_attention_equals_the_reference_with_gradients(H: int, G: int, T: int, window: int) -> None:
    given = inputs(2, H, G, T, 16)
    expected = results(lambda *a: sdpa_reference(*a)[0], given, window)
    for found, wanted in zip(results(sdpa_with_sinks, given, window), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_any_strides() -> None:
    *qkv, sinks = inputs(1, 4, 4, 9, 2)
    given = [*(x.detach().transpose(1, -1).contiguous().transpose(1, -1).requires_grad_() for x in qkv), sinks]
    expected = results(lambda *a: sdpa_reference(*a)[0], given, 9)
    for found, wanted in zip(results(sdpa_with_sinks, given, 9), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("T", "window"), [(5, 5), (33, 8)])
def test_attention_of_other_devices_equals_the_reference_with_gradients(T: int, window: int) -> None:
    given = inputs(2, 4, 4, T, 16)
    expected = results(lambda *a: sdpa_reference(*a)[0], given, window)

    def with_sink_key(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int) -> Tensor:
        return sdpa_with_sink_key(q, k, v, sinks, sliding_window_bias(q, T, window))

    for found, wanted in zip(results(with_sink_key, given, window), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_fewer_queries_than_keys_are_the_last_ones() -> None:
    q, k, v, sinks = inputs(1, 4, 2, 20, 8)
    for window in (6, 20):
        whole = sdpa_reference(q, k, v, sinks, window)[0]
        for queries in (1, 5, 19):
            last = sdpa_with_sinks(q[:, :, -queries:], k, v, sinks, window)
            torch.testing.assert_close(last, whole[:, :, -queries:], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_close() -> None:
    given = inputs(2, 4, 4, 32, 16, torch.bfloat16)
    exact = sdpa_reference(*(x.float() for x in given), 32)[0]  # type: ignore[arg-type]
    torch.testing.assert_close(sdpa_with_sinks(*given, 32).float(), exact, rtol=0.03, atol=0.03)  # type: ignore[arg-type]


def test_a_large_sink_takes_all_attention() -> None:
    q, k, v, _ = inputs(1, 2, 2, 8, 8)
    assert sdpa_with_sinks(q, k, v, torch.full((2,), 60.0), 8).abs().max() < 1e-6


def on_cuda(T: int, dtype: torch.dtype) -> list[Tensor]:
    return [x.detach().to("cuda", dtype).requires_grad_() for x in inputs(2, 4, 2, T, 32)]


@pytest.mark.gpu
@pytest.mark.parametrize(("T", "window"), [(64, 16), (64, 64), (33, 8)])
def test_attention_on_cuda_with_gradients(T: int, window: int) -> None:
    given = on_cuda(T, torch.float32)
    expected = results(lambda *a: sdpa_reference(*a)[0], given, window)
    for found, wanted in zip(results(sdpa_with_sinks, given, window), expected, strict=True):
        assert found.device.type == "cuda"
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize(("T", "window"), [(64, 16), (64, 64), (33, 8), (256, 1)])
def test_attention_on_cuda_in_bfloat16_with_gradients(T: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa_cuda, "PROVED", True)
    given = on_cuda(T, torch.bfloat16)
    assert sdpa_cuda.suits(given[0])
    exact = results(lambda *a: sdpa_reference(*a)[0], [x.detach().float().requires_grad_() for x in given], window)
    for found, wanted in zip(results(sdpa_with_sinks, given, window), exact, strict=True):
        assert (found - wanted).norm() <= 0.02 * wanted.norm()
