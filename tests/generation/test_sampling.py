import pytest
import torch

from mini_transformer.config import SamplingConfig
from mini_transformer.errors import UserError
from mini_transformer.generation.engine import sample

LOGITS = torch.tensor([0.5, 0.1, 0.25, 0.15]).log()


def frequencies(sampling: SamplingConfig, draws: int = 4000) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([sample(LOGITS, sampling, generator) for _ in range(draws)])
    return [(drawn == i).double().mean().item() for i in range(len(LOGITS))]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingConfig(1.0), [0.5, 0.1, 0.25, 0.15]),
        (SamplingConfig(0.5), [0.25 / 0.345, 0.01 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345]),
        (SamplingConfig(1.0, top_k=2), [2 / 3, 0, 1 / 3, 0]),
        (SamplingConfig(1.0, top_k=99), [0.5, 0.1, 0.25, 0.15]),
        (SamplingConfig(1.0, top_p=0.7), [2 / 3, 0, 1 / 3, 0]),
        (SamplingConfig(1.0, top_p=0.01), [1, 0, 0, 0]),
        (SamplingConfig(1.0, top_k=3, top_p=0.8), [2 / 3, 0, 1 / 3, 0]),
        (SamplingConfig(0), [1, 0, 0, 0]),
    ],
)
def test_frequencies(sampling: SamplingConfig, expected: list[float]) -> None:
    assert frequencies(sampling) == pytest.approx(expected, abs=0.03)


def test_a_suppressed_token_is_never_drawn_at_any_temperature() -> None:
    logits = LOGITS.clone()
    logits[0] = float("-inf")
    generator = torch.Generator().manual_seed(0)
    for temperature in (0.0, 1e-9, 1.0, 1e9):
        assert 0 not in {sample(logits, SamplingConfig(temperature), generator) for _ in range(50)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_without_a_token_to_draw_one_line_says_so(value: float, temperature: float) -> None:
    with pytest.raises(UserError, match="the model gives no token a probability"):
        sample(torch.full((5,), value), SamplingConfig(temperature), torch.Generator())


@pytest.mark.parametrize("shift", [0.0, 1000.0, -1000.0])
@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-300, 1e-9])
def test_a_tiny_temperature_takes_the_likeliest_token(temperature: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for sampling in (
        SamplingConfig(temperature),
        SamplingConfig(temperature, top_k=3),
        SamplingConfig(temperature, top_p=0.9),
    ):
        assert {sample(LOGITS.roll(2) + shift, sampling, generator) for _ in range(50)} == {2}
