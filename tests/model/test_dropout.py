from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mini_transformer.config import ModelConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.dropout import RowDropout, drawn_mask, hashed_mask, seed_dropout, set_dropout


def layers(fraction: float) -> torch.nn.Sequential:
    return torch.nn.Sequential(RowDropout(fraction), RowDropout(fraction)).train()


@given(st.lists(st.integers(1, 3), min_size=1, max_size=5))
def test_a_row_is_dropped_alike_in_any_part_of_the_batch(parts: list[int]) -> None:
    model, rows = layers(0.3), sum(parts)
    x = torch.ones(rows, 4, 8)
    seed_dropout(model, (1, 0, 7), range(rows))
    whole = model(x)
    start = 0
    for part in parts:
        seed_dropout(model, (1, 0, 7), range(start, start + part))
        assert torch.equal(model(x[start : start + part]), whole[start : start + part])
        start += part


def test_rows_layers_and_iterations_have_masks_of_their_own() -> None:
    model, x = layers(0.5), torch.ones(2, 64, 64)
    seed_dropout(model, (1, 0, 0), range(2))
    first, second = model[0](x), model[1](x)
    masks = [first[0], first[1], second[0], second[1]]
    seed_dropout(model, (1, 0, 1), range(2))
    masks += list(model[0](x))
    for i, one in enumerate(masks):
        assert one.mean().item() == pytest.approx(1.0, abs=0.06)
        for other in masks[:i]:
            assert (one == other).float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_gradients_go_where_activations_went() -> None:
    model, x = layers(0.5)[:1].train(), torch.randn(3, 8, 8, requires_grad=True)
    seed_dropout(model, (3, 0, 0), range(3))
    out = model(x)
    out.sum().backward()
    assert torch.equal(x.grad, torch.where(out == 0, 0.0, 2.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [drawn_mask, hashed_mask])
@pytest.mark.parametrize("keep", [0.5, 0.8, 0.95])
def test_masks_are_random_on_any_device(keep: float, make: Callable[..., Any]) -> None:
    seeds = torch.tensor([1, 2, 3, 2**62 + 5])
    share = keep if make is drawn_mask else torch.tensor(keep)
    mask = make(seeds, torch.Size((4, 256, 512)), share)
    assert torch.equal(make(seeds[1:2], torch.Size((1, 256, 512)), share)[0], mask[1])
    assert torch.equal(make(seeds, torch.Size((4, 3, 5)), share), mask.flatten(1)[:, :15].view(4, 3, 5))
    kept = mask.float()
    assert kept.mean((1, 2)).tolist() == pytest.approx([keep] * 4, abs=3e-3)
    assert kept.mean((0, 1)).std().item() == pytest.approx((keep * (1 - keep) / 1024) ** 0.5, rel=0.15)  # by channel
    assert kept.mean((0, 2)).std().item() == pytest.approx((keep * (1 - keep) / 2048) ** 0.5, rel=0.2)  # by token
    centred = (kept - keep).flatten(1)
    for one, other in ((centred[0], centred[1]), (centred[0][1:], centred[0][:-1]), (centred[2], centred[3])):
        assert abs((one * other).mean().item()) < 4 * keep * (1 - keep) / len(one) ** 0.5


def test_the_fraction_goes_evenly_from_its_start_to_its_end() -> None:
    model, x = layers(0.4), torch.ones(4, 64, 64)
    for progress, dropped in ((0.0, 0.1), (0.5, 0.25), (1.0, 0.4)):
        set_dropout(model, 0.1, progress)
        seed_dropout(model, (1, 0, 0), range(4))
        out = model[0](x)
        assert (out == 0).float().mean().item() == pytest.approx(dropped, abs=0.01)
        assert out.mean().item() == pytest.approx(1.0, abs=0.01)
    set_dropout(model, 0.0, 0.0)
    seed_dropout(model, (1, 0, 0), range(4))
    assert torch.equal(model(x), x)
    set_dropout(model, None, 0.3)
    assert {layer.kept for layer in model} == {1 - 0.4}


def test_nothing_is_dropped_in_evaluation_or_without_a_fraction() -> None:
    x = torch.ones(2, 4, 8)
    assert RowDropout(0.5).eval()(x) is x
    assert RowDropout(0.0).train()(x) is x


def test_a_decoder_trained_elsewhere_drops_as_pytorch_does() -> None:
    model = Decoder(ModelConfig(n_layer=1, n_embd=16, n_head=2, block_size=8, dropout=0.5).resolve(20)).train()
    ids = torch.zeros((1, 8), dtype=torch.int64)
    torch.manual_seed(1)
    first = model(ids)
    assert not torch.equal(first, model(ids))
    torch.manual_seed(1)
    assert torch.equal(first, model(ids))
