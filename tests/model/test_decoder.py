import pytest
import torch

from mini_transformer.config import ModelConfig
from mini_transformer.model.attention import KVCache
from mini_transformer.model.decoder import Decoder


@pytest.mark.parametrize("steps", [[16], [1] * 16, [5, 1, 1, 9], [3, 4]])
def test_logits_with_a_cache_equal_those_without(tiny_config: ModelConfig, steps: list[int]) -> None:
    torch.manual_seed(0)
    model = Decoder(tiny_config).eval()
    ids = torch.randint(50, (2, sum(steps)))
    cache = KVCache(tiny_config, 2, torch.device("cpu"), torch.float32)
    parts, start = [], 0
    for step in steps:
        parts.append(model(ids[:, start : start + step], cache))
        start += step
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=1e-4, atol=1e-5)


def test_nothing_is_seen_of_the_future_or_before_the_window(tiny_config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Decoder(tiny_config).eval()
    ids = torch.randint(50, (1, 16))
    changed = ids.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 50
    difference = (model(ids) - model(changed)).abs().amax(-1)[0]
    assert (difference[:9] == 0).all()
    assert (difference[9:] > 0).all()
    layer = model.layers[0].self_attn  # a sliding one, window 6
    x = torch.randn(1, 16, 32)
    other = x.clone()
    other[0, 3] += 1
    rotary = (model.get_buffer("cos"), model.get_buffer("sin"))
    difference = (layer(x, rotary) - layer(other, rotary)).abs().amax(-1)[0]
    assert (difference[3:9] > 0).all()
    assert (difference[9:] == 0).all()


def test_too_many_tokens_are_refused(tiny_config: ModelConfig) -> None:
    with pytest.raises(ValueError, match="17 tokens do not fit a block of 16"):
        Decoder(tiny_config)(torch.zeros((1, 17), dtype=torch.int64))


def test_parameter_counts(tiny_config: ModelConfig) -> None:
    model = Decoder(tiny_config)
    total, active = model.parameter_counts()
    expert = 32 * 48 + 48 + 24 * 32 + 32
    assert total == sum(p.numel() for p in model.parameters())
    assert total - active == 2 * 2 * expert


def test_active_parameters_of_experts_match_a_dense_block() -> None:
    for width in (128, 512, 768):
        dense = ModelConfig(n_embd=width, n_experts=1, experts_per_token=1).resolve(100)
        sparse = ModelConfig(n_embd=width).resolve(100)
        assert 0 <= sparse.expert_hidden * 2 - dense.expert_hidden < 64
