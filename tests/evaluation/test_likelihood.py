import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mini_transformer.config import ModelConfig
from mini_transformer.evaluation.likelihood import measure, token_nats, windows
from mini_transformer.model.decoder import Decoder
from mini_transformer.text.tokenizer import Tokenizer
from tests.conftest import FABLES


@given(st.integers(1, 200), st.integers(2, 20))
def test_each_token_is_predicted_once_with_half_a_block_before_it(tokens: int, block: int) -> None:
    predicted: list[int] = []
    for first, start, end in windows(tokens, block):
        assert end - first <= block
        assert first == 0 or start - first >= block - block // 2
        predicted += range(start + 1, end + 1)
    assert predicted == list(range(1, tokens))


def test_the_sum_is_that_of_single_predictions(tiny_config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Decoder(tiny_config).eval()
    ids = torch.randint(50, (75,))
    expected = []
    for first, start, end in windows(75, 16):
        for position in range(start + 1, end + 1):  # each token alone, from exactly the context it has
            logits = model(ids[None, first:position])[0, -1]
            expected.append(F.cross_entropy(logits[None], ids[position : position + 1]).item())
    for batch_size in (1, 3, 16):
        found = np.concatenate(list(token_nats(model, ids.numpy().astype("uint32"), batch_size)))
        assert found.tolist() == pytest.approx(expected, rel=1e-4)
        assert found.sum() == pytest.approx(sum(expected), rel=1e-5)


def test_an_untrained_model_costs_about_the_logarithm_of_its_vocabulary() -> None:
    text = "Un été, un cœur.\n\n\nDeux étés."
    tokenizer = Tokenizer.from_characters([text])
    model = Decoder(ModelConfig(n_layer=1, n_embd=16, n_head=2, block_size=8).resolve(tokenizer.vocab_size)).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    result = measure(model, tokenizer, text)
    assert result.characters == 29
    assert result.bytes == 29 + 5
    assert result.tokens == 28  # 16 + 10 characters and two EOT tokens
    bits = 28 * math.log2(tokenizer.vocab_size)
    assert result.bits_per_character == pytest.approx(bits / 29)
    assert result.bits_per_byte == pytest.approx(bits / 34)
    assert result.nats_per_token == pytest.approx(math.log(tokenizer.vocab_size))


def test_evaluate_prints_json(trained: Path, call) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = call("evaluate", "--model-dir", trained, "--data", FABLES, "--json", "--device", "cpu")
    assert code == 0
    result = json.loads(out)
    assert list(result) == ["bits_per_character", "bits_per_byte", "nats_per_token", "characters", "bytes", "tokens"]
    assert 1 < result["bits_per_byte"] < result["bits_per_character"] < 8


def test_windows_line_ends_are_warned_of(trained: Path, tmp_path: Path, call) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.txt").write_bytes("Un renard\r\nrusé\r\n".encode())
    code, out, err = call("evaluate", "--model-dir", trained, "--data", tmp_path / "a.txt", "--device", "cpu")
    assert code == 0
    assert "17 characters" in out
    assert err.startswith(f"Warning: {tmp_path / 'a.txt'} has Windows line ends")
    assert err.count("\n") == 1
