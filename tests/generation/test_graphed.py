"""The step of a GPU: positions in memory, and the CUDA graph, against the model's own."""

from itertools import islice

import numpy as np
import pytest
import torch

from mini_transformer.config import SamplingConfig
from mini_transformer.generation import decoding
from mini_transformer.generation.decoding import Row, generate_tokens, make_cache, make_step, model_step, prefill
from mini_transformer.generation.graphed import GraphedStep, _Positions
from mini_transformer.model.decoder import Decoder
from tests.generation.test_single_row import CASES, random_model

LENGTHS = (1, 4, 9)


@torch.inference_mode()
def prefilled(model: Decoder) -> decoding.KVCache:
    """A cache of rows that are not equally long."""
    cache = make_cache(model, len(LENGTHS))
    rows = [Row(i, [7 * j % 40 for j in range(n + 1)], np.random.default_rng(0)) for i, n in enumerate(LENGTHS)]
    prefill(model, cache, rows)
    assert cache.lengths == list(LENGTHS)
    return cache


@pytest.mark.parametrize("case", CASES)
def test_positions_in_memory_are_as_good_as_lengths(case: str) -> None:
    model = random_model(CASES[case])
    one, other = prefilled(model), prefilled(model)
    positions, ids = _Positions(other), torch.tensor([[3], [5], [8]])
    with torch.inference_mode():
        for step in range(3):
            positions.place([length + step for length in LENGTHS])
            found = model(ids, positions)
            torch.testing.assert_close(found, model(ids, one), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_the_graph_finds_the_models_logits(case: str) -> None:
    model = random_model(CASES[case]).cuda()
    one, other = prefilled(model), prefilled(model)
    plain, step = model_step(model, one), make_step(model, other, 100)
    assert isinstance(step.__self__, GraphedStep)  # type: ignore[attr-defined]
    for ids in ([3, 5, 8], [1, 2, 3]):
        np.testing.assert_allclose(step(ids), plain(ids), rtol=1e-3, atol=1e-4)
    for cache in (one, other):
        cache.keep([0, 2])
    np.testing.assert_allclose(step([4, 5]), plain([4, 5]), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_texts_on_cuda_are_those_of_a_cpu() -> None:
    model, texts = random_model(CASES["as trained"]), []
    prompts = [[7 * j % 40 for j in range(n)] for n in (1, 4, 30)]
    for device in ("cpu", "cuda"):
        generators = [np.random.default_rng(i) for i in range(3)]
        stream = generate_tokens(model.to(device), prompts, SamplingConfig(0.8), generators, [], 40, stop_id=5)
        texts.append(list(islice(stream, 120)))
    assert texts[0] == texts[1]
