"""The proofs of a GPU's kernels, which must notice what is wrong."""

import pytest
import torch
from torch import Tensor

from mini_transformer.model import grouped, sdpa_cuda
from mini_transformer.training import proofs

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (grouped, sdpa_cuda):
        monkeypatch.setattr(module, "PROVED", False)


def test_grouped_products_of_a_cpu_are_proved_and_wrong_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proofs.experts_error(CPU) < 0.02
    products = torch._grouped_mm
    for wrong in (
        lambda x, w, offs: products(x, w, offs=offs) * 1.1,
        lambda x, w, offs: products(x, w.flip(0), offs=offs),
    ):
        monkeypatch.setattr(torch, "_grouped_mm", wrong)
        assert proofs.experts_error(CPU) > 0.05


def test_what_is_not_there_is_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    proofs.prove_kernels(CPU)  # where the CUDA kernel of attention is not
    assert (sdpa_cuda.PROVED, grouped.PROVED) == (False, True)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Not used on this GPU: flash attention (NotImplementedError: ")


def test_attention_is_held_against_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the arithmetic of the kernels written out, right and wrong."""

    def probabilities(q: Tensor, k: Tensor, lse: Tensor | None, left: int) -> tuple[Tensor, Tensor]:
        scores = torch.einsum("bthd,bshd->bhts", q.float(), k.float()) * q.shape[-1] ** -0.5
        i, j = torch.arange(q.shape[1])[:, None], torch.arange(q.shape[1])
        scores = scores.masked_fill((j > i) | ((left >= 0) & (i - j > left)), float("-inf"))
        lse = scores.logsumexp(-1) if lse is None else lse
        return torch.exp(scores - lse.unsqueeze(-1)), lse

    def forward(q, k, v, *_, window_size_left):  # type: ignore[no-untyped-def]
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
        p, lse = probabilities(q, k, None, window_size_left)
        out = torch.einsum("bhts,bshd->bthd", p, v.float()).to(q.dtype)
        return out, lse, torch.zeros(2), torch.zeros(1), torch.zeros(0)

    def backward(grad, q, k, v, out, lse, *_, window_size_left):  # type: ignore[no-untyped-def]
        groups = q.shape[2] // k.shape[2]
        keys, values = (x.repeat_interleave(groups, dim=2).float() for x in (k, v))
        p, _ = probabilities(q, keys, lse, window_size_left)
        d_p = torch.einsum("bthd,bshd->bhts", grad.float(), values)
        d_s = p * (d_p - (grad.float() * out.float()).sum(-1).transpose(1, 2).unsqueeze(-1)) * q.shape[-1] ** -0.5
        d_q = torch.einsum("bhts,bshd->bthd", d_s, keys)
        d_k, d_v = torch.einsum("bhts,bthd->bshd", d_s, q.float()), torch.einsum("bhts,bthd->bshd", p, grad.float())
        return d_q.to(q.dtype), *(x.unflatten(2, (-1, groups)).sum(3).to(q.dtype) for x in (d_k, d_v))

    monkeypatch.setattr(sdpa_cuda, "FORWARD", forward)
    monkeypatch.setattr(sdpa_cuda, "BACKWARD", backward)
    assert proofs.attention_error(CPU) < 0.02
    monkeypatch.setattr(sdpa_cuda, "FORWARD", lambda *a, window_size_left: forward(*a, window_size_left=-1))
    assert proofs.attention_error(CPU) > 0.05
    monkeypatch.setattr(sdpa_cuda, "FORWARD", forward)
    monkeypatch.setattr(
        sdpa_cuda,
        "BACKWARD",
        lambda *a, window_size_left: backward(*a[:4], a[4] * 0, *a[5:], window_size_left=window_size_left),
    )
    assert proofs.attention_error(CPU) > 0.05
