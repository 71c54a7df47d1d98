"""The step without a dispatcher, in NumPy and compiled, against the model."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_transformer.config import FULL, SLIDING, ModelConfig, RopeConfig, SamplingConfig
from mini_transformer.generation.decoding import Step, make_cache, make_step
from mini_transformer.model.attention import KVCache
from mini_transformer.model.decoder import Decoder, round_matrices
from tests.conftest import ROOT, generate_one, generate_without_cache

TOKENS = {"numpy": 100, "numba": 10**9}  # the length of a text for which the engine takes each
needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
both = pytest.mark.parametrize("way", ["numpy", pytest.param("numba", marks=needs_numba)])
VOCABULARY = 40
SMALL = ModelConfig(n_layer=2, n_embd=32, n_head=4, block_size=12, expert_hidden=24, dropout=0.1)
CASES = {
    "as trained": SMALL,
    "grouped heads, sliding window": dataclasses.replace(SMALL, n_kv_head=2, sliding_window=5),
    "one key/value head, window of one": dataclasses.replace(SMALL, n_kv_head=1, sliding_window=1),
    "dense": dataclasses.replace(SMALL, n_experts=1),
    "all experts": dataclasses.replace(SMALL, n_experts=3, experts_per_token=3),
    "tied": dataclasses.replace(SMALL, tie_embeddings=True),
    "yarn": dataclasses.replace(SMALL, rope=RopeConfig(factor=4.0, original_context=6)),
    "heads of two": dataclasses.replace(SMALL, n_head=6, n_embd=12),
    "heads wider than the model": dataclasses.replace(SMALL, head_dim=20, layer_types=(FULL, SLIDING)),
}


def random_model(config: ModelConfig, std: float = 0.3, seed: int = 1) -> Decoder:
    """With weights so large that clamps and sinks matter."""
    torch.manual_seed(seed)
    model = Decoder(config.resolve(VOCABULARY)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def make(way: str, model: Decoder, batch: int = 1) -> tuple[Step, KVCache]:
    cache = make_cache(model, batch)
    step = make_step(model, cache, TOKENS[way])
    assert step.__qualname__ == {"numpy": "make_step.<locals>.<lambda>", "numba": "CompiledRows.step"}[way]
    return step, cache


def assert_equal_logits(way: str, model: Decoder, prefilled: int = 0) -> None:
    """At each position of a block, of which the model itself reads the first few tokens."""
    size = model.config.block_size
    ids = torch.randint(VOCABULARY, (1, size))
    step, cache = make(way, model)
    with torch.inference_mode():
        expected = model(ids)[0]
        if prefilled:
            model(ids[:, :prefilled], cache)
    found = torch.cat([torch.from_numpy(step([i])) for i in ids[0, prefilled:].tolist()])
    torch.testing.assert_close(found, expected[prefilled:], rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert cache.lengths == [size]


@both
@pytest.mark.parametrize("prefilled", [0, 5])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_models(way: str, case: str, prefilled: int) -> None:
    assert_equal_logits(way, random_model(CASES[case]), prefilled)


@needs_numba
@pytest.mark.slow  # it is compiled once more
@pytest.mark.parametrize("case", CASES)
def test_weights_of_16_bits_are_held_in_16_bits(case: str) -> None:
    from mini_transformer.generation.compiled import CompiledRows

    model = random_model(CASES[case])
    round_matrices(model)
    steps = CompiledRows(model, make_cache(model, 1))
    assert {steps.lm_head.dtype, *(weights[1].dtype for weights in steps.weights)} == {np.dtype(np.uint16)}
    assert_equal_logits("numba", model)
    with torch.no_grad():
        model.layers[1].mlp.experts.down_proj[0, 0, 0] += 1e-4  # a single weight that needs more
    assert CompiledRows(model, make_cache(model, 1)).lm_head.dtype == np.float32


@both
def test_so_they_do_where_everything_is_clamped_and_exp_overflows(way: str) -> None:
    assert_equal_logits(way, random_model(SMALL, std=4.0))


@both
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_logits_of_any_shape(way: str, data: st.DataObject) -> None:
    def draw(least: int, most: int) -> int:
        return data.draw(st.integers(least, most))

    groups, experts, layers = draw(1, 3), draw(1, 5), draw(1, 3)
    config = ModelConfig(
        block_size=draw(2, 9),
        n_layer=layers,
        n_embd=4 * draw(1, 9),
        n_head=groups * draw(1, 3),
        n_kv_head=groups,
        head_dim=2 * draw(1, 5),
        n_experts=experts,
        experts_per_token=draw(1, experts),
        expert_hidden=draw(1, 20),
        sliding_window=draw(1, 9),
        layer_types=tuple(data.draw(st.sampled_from((SLIDING, FULL))) for _ in range(layers)),
        tie_embeddings=data.draw(st.booleans()),
    )
    assert_equal_logits(way, random_model(config, seed=draw(0, 9)), draw(0, 1))


@needs_numba
@pytest.mark.parametrize("bits", [32, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_rows_of_a_batch_are_the_same_bit_for_bit_as_alone(case: str, bits: int) -> None:
    model = random_model(CASES[case])
    if bits == 16:
        round_matrices(model)
    ids = torch.randint(VOCABULARY, (7, 9)).tolist()
    lengths = [0, 1, 2, 3, 3, 0, 1]  # of each row, when the steps begin

    def logits(rows: list[int]) -> list[Any]:
        step, cache = make("numba", model, len(rows))
        with torch.inference_mode():
            for i, row in enumerate(rows):
                part = make_cache(model, 1)
                if lengths[row]:
                    model(torch.tensor([ids[row][: lengths[row]]]), part)
                cache.copy([i], part, [0])
        return [step([ids[row][lengths[row] + n] for row in rows]) for n in range(6)]

    together = logits(list(range(7)))
    for row in range(7):
        for alone, batch in zip(logits([row]), together, strict=True):
            assert (alone[0] == batch[row]).all()


@needs_numba
@pytest.mark.parametrize("shape", [(37, 45), (520, 515)])  # in one part; in two
def test_a_row_of_a_product_is_the_same_bit_for_bit_as_alone(shape: tuple[int, int]) -> None:
    from mini_transformer.generation.kernels import add_product

    random_numbers = np.random.default_rng(0)
    x = random_numbers.standard_normal((7, shape[0])).astype(np.float32)
    matrix = random_numbers.standard_normal(shape).astype(np.float32)
    together = np.ones((7, shape[1]), np.float32)
    add_product(x, matrix, together, 2, False)
    np.testing.assert_allclose(together, x @ matrix + 1, rtol=1e-4, atol=1e-4)
    for n in range(7):
        alone = np.ones((1, shape[1]), np.float32)
        add_product(x[n : n + 1], matrix, alone, 2, True)
        assert (alone[0] == together[n]).all()


@both
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_texts_equal_the_uncached_ones_past_the_block(way: str, temperature: float) -> None:
    model, sampling = random_model(CASES["grouped heads, sliding window"]), SamplingConfig(temperature)
    for prompt in ([3], [i * 7 % VOCABULARY for i in range(30)]):
        found = generate_one(model, prompt, sampling, np.random.default_rng(5), [2, 9], TOKENS[way])
        expected = generate_without_cache(model, prompt, sampling, np.random.default_rng(5), [2, 9])
        assert list(islice(found, 60)) == list(islice(expected, 60))


@both
def test_changed_weights_are_seen_by_the_next_text(way: str) -> None:
    model, sampling = random_model(SMALL), SamplingConfig(0)

    def text(generate: Callable[..., object], *more: int) -> list[int]:
        return list(islice(generate(model, [1], sampling, np.random.default_rng(0), [], *more), 20))  # type: ignore[call-overload]

    before = text(generate_one, TOKENS[way])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.8).add_(0.05)
    after = text(generate_one, TOKENS[way])
    assert before != after == text(generate_without_cache)


def test_other_models_take_their_own_step() -> None:
    for model in (random_model(SMALL).bfloat16(), random_model(SMALL).train()):  # dropout
        assert make_step(model, make_cache(model, 1), 10**9).__qualname__ == "model_step.<locals>.step"
    tokens = generate_one(random_model(SMALL).bfloat16(), [1], SamplingConfig(0), np.random.default_rng(0), [])
    assert len(list(islice(tokens, 30))) == 30


def written(trained: Path, path: Path, then: str = "") -> tuple[str, str]:
    """What a process of its own writes, with `path` in front of all others, on standard output and error."""
    code = f"""
import sys
sys.path[:0] = [{str(path)!r}, {str(ROOT)!r}]
from itertools import islice
from pathlib import Path
from mini_transformer.generation.engine import Engine
engine = Engine.load(Path({str(trained)!r}), "cpu")
print("".join(islice(engine.stream("Un renard", 10**9, seed=1), 20)))
{then}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_numba_that_does_not_work_is_named_and_numpy_writes(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise RuntimeError('no compiler here\\nsecond line')\n")
    text, errors = written(trained, tmp_path)
    assert errors == "numba does not compile the step, it is taken without (RuntimeError: no compiler here)\n"
    assert len(text) >= 20


def test_writing_loads_nothing_heavy_but_torch(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError\n")
    heavy = {"torch._dynamo", "torch._inductor", "sympy", "matplotlib", "datasets", "pyarrow", "openai", "transformers"}
    assert written(trained, tmp_path, f"print({heavy} & set(sys.modules))")[0].endswith("\nset()\n")


@needs_numba
def test_numba_leaves_torch_its_number_of_threads() -> None:
    """On which the bytes of a training depend, whose samples it may write."""
    code = """if True:
        import torch
        from tests.generation.test_single_row import SMALL, make, random_model
        make("numba", random_model(SMALL))[0]([0])
        assert torch.get_num_threads() == 1"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert not subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment).returncode
