import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from mini_transformer.config import ModelConfig, SamplingConfig
from mini_transformer.generation.engine import Engine, context_start, generate_tokens
from mini_transformer.model.decoder import Decoder
from mini_transformer.text.documents import DOCUMENT_SEPARATOR
from tests.conftest import generate_without_cache


@pytest.fixture
def model(tiny_config: ModelConfig) -> Decoder:
    torch.manual_seed(1)
    model = Decoder(tiny_config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def tokens(model: Decoder, prompt: list[int], count: int, **settings: object) -> list[int]:
    sampling = settings.pop("sampling", SamplingConfig(1.0))
    generate = generate_tokens if settings.pop("use_cache", True) else generate_without_cache
    stream: Iterator[int] = generate(
        model,
        prompt,
        sampling,  # type: ignore[arg-type]
        random.Random(5),
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


def test_a_text_repeats_with_its_seed_and_only_then(trained: Path) -> None:
    engine = Engine.load(trained, torch.device("cpu"))
    texts = ["".join(engine.generate("Un renard", 80, SamplingConfig(), seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) >= 80


def test_the_eot_token_is_a_separator_or_stops_the_text(trained: Path) -> None:
    engine = Engine.load(trained, torch.device("cpu"))
    eot_id = engine.tokenizer.eot_id
    everything_else = [
        i for i in range(engine.tokenizer.vocab_size) if i not in (eot_id, *engine.tokenizer.encode("ab"))
    ]
    engine = Engine(engine.model, engine.tokenizer, everything_else)
    text = "".join(engine.generate("", 60, SamplingConfig(5.0), seed=3))
    documents = text.split(DOCUMENT_SEPARATOR)
    assert len(documents) > 2
    assert set(text) == {"a", "b", "\n"}
    assert "".join(engine.generate("", 60, SamplingConfig(5.0), seed=3, stop_at_end=True)) == documents[0]


def test_only_what_the_training_text_holds_is_generated(trained: Path, fables: Path) -> None:
    engine = Engine.load(trained, torch.device("cpu"))
    text = "".join(engine.generate("日本", 300, SamplingConfig(3.0), seed=4))
    assert set(text) <= set(fables.read_text(encoding="utf-8"))
