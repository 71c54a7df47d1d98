import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mini_transformer.config import ModelConfig, OptimConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.training import muon
from mini_transformer.training.muon import Muon, orthogonal
from mini_transformer.training.optimizer import in_muon, make_optimizer


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.floats(-6, 6), st.integers(0, 99))
def test_singular_values_become_about_one_and_vectors_stay(
    rows: int, columns: int, matrices: int, size: float, seed: int
) -> None:
    x = torch.randn(matrices, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    x = u @ (s.clamp(min=0.15 * s[:, :1])[..., None] * vh) * 10**size
    values = u.mT @ orthogonal(x) @ vh.mT
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert (diagonal > 0.9).all()
    assert (diagonal < 1.1).all()
    assert torch.allclose(values, torch.diag_embed(diagonal), atol=1e-6)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 24), (24, 40), (40, 24), (3, 24, 40), (3, 40, 24)])
def test_each_matrix_takes_the_steps_of_the_library(
    shape: tuple[int, ...], precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "POLYNOMIALS", 5 * [(3.4445, -4.7750, 2.0315)])  # the library's
    monkeypatch.setattr(muon, "bound", lambda fourth_nii: torch.ones(len(fourth_nii), 1, 1))
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = [nn.Parameter(part.clone()) for part in ours.detach().reshape(-1, *shape[-2:])]
    settings = {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.95}
    optimizer = Muon([{"params": [ours], **settings}], precision)
    library = torch.optim.Muon(theirs, **settings, nesterov=True, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        ours.grad = torch.randn(shape)
        for parameter, gradient in zip(theirs, ours.grad.reshape(-1, *shape[-2:]), strict=True):
            parameter.grad = gradient.clone()
        before = ours.detach().clone()
        optimizer.step()
        library.step()
        expected = torch.stack([p.detach() for p in theirs]).reshape(shape)
        assert (ours - expected).norm() < 0.02 * (ours - before).norm()  # the library computes in bfloat16


def test_all_but_the_matrices_of_blocks_take_the_steps_of_adamw(tiny_config: ModelConfig) -> None:
    torch.manual_seed(0)
    models = [Decoder(tiny_config), Decoder(tiny_config)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [make_optimizer(m, OptimConfig(optimizer=o)) for m, o in zip(models, ("adamw", "muon"), strict=True)]
    for parameters in zip(*(m.parameters() for m in models), strict=True):
        parameters[0].grad = torch.randn_like(parameters[0])
        parameters[1].grad = parameters[0].grad.clone()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()
    named = [m.named_parameters() for m in models]
    differ = {n for (n, a), (_, b) in zip(*named, strict=True) if not torch.equal(a, b)}
    kinds = {name.split(".", 2)[2] for name in differ}
    assert kinds == {
        *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
        *(f"mlp.experts.{name}_proj" for name in ("gate_up", "down")),
    }
    assert differ == {n for n, p in models[0].named_parameters() if in_muon(n, p)}
    assert isinstance(optimizers[1], Muon)
    assert not isinstance(optimizers[0], Muon)


def test_an_expert_without_tokens_does_not_move_and_hurts_nobody() -> None:
    weights = nn.Parameter(torch.ones(2, 4, 8))
    optimizer = Muon([{"params": [weights], "lr": 0.1, "weight_decay": 0.0, "momentum": 0.95}])
    weights.grad = torch.randn(2, 4, 8)
    weights.grad[0] = 0
    optimizer.step()
    assert (weights[0] == 1).all()
    assert weights.isfinite().all()
    assert not (weights[1] == 1).any()
