import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mini_transformer.errors import UserError
from mini_transformer.evaluation.likelihood import measure
from mini_transformer.generation.engine import Engine
from mini_transformer.text.documents import DOCUMENT_SEPARATOR
from mini_transformer.text.tokenizer import EOT_TOKEN


def test_a_text_repeats_with_its_seed_and_only_then(trained: Path) -> None:
    engine = Engine.load(str(trained), "cpu")
    texts = [engine.generate("Un renard", 80, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) >= 80


def test_the_eot_token_is_a_separator_or_stops_the_text(trained: Path) -> None:
    engine = Engine.load(str(trained), "cpu")
    eot_id = engine.tokenizer.eot_id
    everything_else = [
        i for i in range(engine.tokenizer.vocab_size) if i not in (eot_id, *engine.tokenizer.encode("ab"))
    ]
    engine = Engine(engine.model, engine.tokenizer, everything_else)
    text = engine.generate("", 60, temperature=5.0, seed=3)
    documents = text.split(DOCUMENT_SEPARATOR)
    assert len(documents) > 2
    assert set(text) == {"a", "b", "\n"}
    assert engine.generate("", 60, temperature=5.0, seed=3, stop_at_end=True) == documents[0]


def test_only_what_the_training_text_holds_is_generated(trained: Path, fables: Path) -> None:
    engine = Engine.load(str(trained), "cpu")
    text = engine.generate("日本", 300, temperature=3.0, seed=4)
    assert set(text) <= set(fables.read_text(encoding="utf-8"))


def test_a_list_of_prompts_gives_each_the_text_that_it_gets_alone(trained: Path) -> None:
    engine = Engine.load(trained, "cpu")
    prompts = ["", "Un renard", "Le chat et le rat " * 4, "Un renard"]
    texts = engine.generate(prompts, 50, seed=7, min_p=0.01)
    assert texts == [engine.generate(prompt, 50, seed=7 + i, min_p=0.01) for i, prompt in enumerate(prompts)]
    assert len(set(texts)) == 4
    assert "".join(engine.stream("Un renard", 50, seed=8, min_p=0.01)) == texts[1]
    assert engine.generate([]) == []


def test_more_rows_than_are_written_at_a_time(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.load(trained, "cpu")
    together = engine.generate([""] * 5, 20, seed=1)
    monkeypatch.setattr("mini_transformer.generation.engine.MAX_ROWS", 2)
    assert engine.generate([""] * 5, 20, seed=1) == together


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temprature": 1.0}, "`temprature`: unknown setting; did you mean temperature?"),
        ({"temperature": -1.0}, "`temperature`: -1.0 is too small: at least 0.0"),
        ({"temperature": "hot"}, "`temperature`: 'hot': expected a number"),
        ({"max_new_tokens": 0}, "`max_new_tokens`: 0 is too small: at least 1"),
        ({"min_p": 2}, "`min_p`: 2.0 is too large: at most 1.0"),
        ({"repetition_penalty": 0}, "`repetition_penalty`: 0.0 is too small: at least 0.01"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_written(trained: Path, settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Engine.load(trained, "cpu").stream("Un", **settings)


def test_a_device_that_is_not_there_is_named(trained: Path) -> None:
    with pytest.raises(UserError, match="`device`: 'gpu' is none of auto, cpu, cuda, mps"):
        Engine.load(trained, "gpu")


def test_the_score_of_a_text_is_its_likelihood_token_by_token(trained: Path) -> None:
    engine, text = Engine.load(trained, "cpu"), "Un renard rusé.\n\n\nUn cœur 日."
    score = engine.score(text)
    assert score.tokens[:3] == ["U", "n", " "]
    assert score.tokens[15] == score.tokens[-1] == EOT_TOKEN
    assert len(score.log_probabilities) == len(score.tokens)
    assert score.bits_per_character == pytest.approx(measure(engine.model, engine.tokenizer, text).bits_per_character)
    assert score.bits_per_character == pytest.approx(-sum(score.log_probabilities) / math.log(2) / len(text))
    with pytest.raises(UserError, match="the text: empty"):
        engine.score("\n")


def test_weights_may_be_rounded_to_bfloat16(trained: Path) -> None:
    exact, rounded = (Engine.load(trained, "cpu", precision) for precision in ("float32", "bfloat16"))
    for name, weight in rounded.model.state_dict().items():
        there = exact.model.state_dict()[name]
        matrix = there.ndim > 1 and not name.endswith("bias")
        assert torch.equal(weight, there.bfloat16().float() if matrix else there)
    text = "Un renard et un corbeau"
    a, b = (engine.score(text).bits_per_character for engine in (exact, rounded))
    assert a != b
    assert a == pytest.approx(b, rel=0.01)
