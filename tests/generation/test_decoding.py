import dataclasses
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch

from mini_transformer.config import FULL, SLIDING, ModelConfig, SamplingConfig
from mini_transformer.generation.decoding import context_start, generate_tokens
from mini_transformer.model.decoder import Decoder
from tests.conftest import generate_one, generate_without_cache


def random_model(config: ModelConfig) -> Decoder:
    torch.manual_seed(1)
    model = Decoder(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def model(tiny_config: ModelConfig) -> Decoder:
    return random_model(tiny_config)


def tokens(model: Decoder, prompt: list[int], count: int, **settings: object) -> list[int]:
    sampling = settings.pop("sampling", SamplingConfig(1.0))
    generate = generate_one if settings.pop("use_cache", True) else generate_without_cache
    stream: Iterator[int] = generate(
        model,
        prompt,
        sampling,  # type: ignore[arg-type]
        np.random.default_rng(5),
        settings.pop("suppress_tokens", []),  # type: ignore[arg-type]
        **settings,  # type: ignore[arg-type]
    )
    return list(islice(stream, count))


@pytest.mark.parametrize("length", [1, 5, 15, 16, 17, 23, 24, 25, 40])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_the_cache_changes_nothing_within_the_block_and_past_it(
    model: Decoder, length: int, temperature: float
) -> None:
    prompt = [i * 7 % 50 for i in range(length)]
    sampling = SamplingConfig(temperature)
    cached = tokens(model, prompt, 60, sampling=sampling)
    assert cached == tokens(model, prompt, 60, sampling=sampling, use_cache=False)
    assert len(set(cached)) > 1


@pytest.mark.parametrize("block", [2, 3, 8, 9])
def test_a_full_context_keeps_its_last_half(block: int) -> None:
    start = 0
    for count in range(1, 60):
        if count - start > block:  # one more than fits: the last half of the full block stays, then the new token
            start = count - 1 - block // 2
        assert context_start(count, block) == start
        assert count - start <= block
        assert count <= block or count - start > block // 2


def test_suppressed_tokens_are_never_generated(model: Decoder) -> None:
    free = set(tokens(model, [1], 200))
    suppress_tokens = sorted(free)[: len(free) // 2]
    assert not set(tokens(model, [1], 200, suppress_tokens=suppress_tokens)) & set(suppress_tokens)


PROCESSORS = {
    "temperature": SamplingConfig(1.3),
    "top-k": SamplingConfig(1.0, top_k=7),
    "top-p": SamplingConfig(1.0, top_p=0.8),
    "min-p": SamplingConfig(1.0, min_p=0.05),
    "repetition penalty": SamplingConfig(1.0, repetition_penalty=1.5),
    "likeliest, repetition penalty": SamplingConfig(0, repetition_penalty=1.5),
    "all of them": SamplingConfig(0.9, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.2),
}
SHAPES = {
    "grouped heads, sliding window": {},
    "one key/value head": {"n_kv_head": 1},
    "dense": {"n_experts": 1, "experts_per_token": 1},
    "full attention first, all experts": {"layer_types": (FULL, SLIDING), "experts_per_token": 4},
}


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_gives_each_row_its_uncached_text(tiny_config: ModelConfig, processor: str, shape: str) -> None:
    """Eight prompts of different lengths (two are equal) from one token to more than a block; past the block."""
    model = random_model(dataclasses.replace(tiny_config, **SHAPES[shape]))  # type: ignore[arg-type]
    prompts = [[i * 7 % 50 for i in range(length)] for length in (1, 2, 5, 5, 15, 16, 17, 40)]
    generators = [np.random.default_rng(seed) for seed in range(8)]
    texts: list[list[int]] = [[] for _ in prompts]
    for row, token in generate_tokens(model, prompts, PROCESSORS[processor], generators, [3], 30):
        texts[row].append(token)
    for row, prompt in enumerate(prompts):
        alone = generate_without_cache(model, prompt, PROCESSORS[processor], np.random.default_rng(row), [3])
        assert texts[row] == list(islice(alone, 30))
    assert len({tuple(text) for text in texts}) >= 7


def test_a_row_that_ends_leaves_the_others_as_they_are(model: Decoder) -> None:
    prompts = [[1], [2, 3], [4, 5, 6], [7]]
    texts: list[list[int]] = [[] for _ in prompts]
    generators = [np.random.default_rng(seed) for seed in range(4)]
    for row, token in generate_tokens(model, prompts, SamplingConfig(1.0), generators, [], 60, stop_id=9):
        texts[row].append(token)
    whole = [
        list(islice(generate_one(model, p, SamplingConfig(1.0), np.random.default_rng(i), []), 60))
        for i, p in enumerate(prompts)
    ]
    ends = [text.index(9) if 9 in text else 60 for text in whole]
    assert texts == [text[:end] for text, end in zip(whole, ends, strict=True)]
    assert len(set(ends)) > 2
