import numpy as np
import pytest

from mini_transformer.config import SamplingConfig
from mini_transformer.errors import UserError
from mini_transformer.generation.sampling import sample

LOGITS = np.log(np.array([0.5, 0.1, 0.25, 0.15], dtype=np.float32))


def frequencies(sampling: SamplingConfig, draws: int = 4000) -> list[float]:
    generator = np.random.default_rng(0)
    drawn = [sample(LOGITS, sampling, generator) for _ in range(draws)]
    return [drawn.count(i) / draws for i in range(len(LOGITS))]


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
    logits = LOGITS.copy()
    logits[0] = float("-inf")
    generator = np.random.default_rng(0)
    for temperature in (0.0, 1e-9, 1.0, 1e9):
        assert 0 not in {sample(logits, SamplingConfig(temperature), generator) for _ in range(50)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_without_a_token_to_draw_one_line_says_so(value: float, temperature: float) -> None:
    with pytest.raises(UserError, match="the model gives no token a probability"):
        sample(np.full(5, value, dtype=np.float32), SamplingConfig(temperature), np.random.default_rng(0))


@pytest.mark.parametrize("shift", [0.0, 1000.0, -1000.0])
@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-300, 1e-9])
def test_a_tiny_temperature_takes_the_likeliest_token(temperature: float, shift: float) -> None:
    generator = np.random.default_rng(0)
    for sampling in (
        SamplingConfig(temperature),
        SamplingConfig(temperature, top_k=3),
        SamplingConfig(temperature, top_p=0.9),
    ):
        assert {sample(np.roll(LOGITS, 2) + np.float32(shift), sampling, generator) for _ in range(50)} == {2}
