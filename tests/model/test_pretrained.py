"""The model folder in the hands of `transformers`."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mini_transformer.config import RopeConfig, SamplingConfig
from mini_transformer.errors import UserError
from mini_transformer.evaluation.likelihood import measure
from mini_transformer.generation.engine import Engine
from mini_transformer.model.pretrained import (
    CONFIG,
    GENERATION,
    WEIGHTS,
    config_from_json,
    read_model,
    read_suppress_tokens,
)
from mini_transformer.text.tokenizer import EOT_TOKEN
from tests.conftest import FABLES, generate_one

CPU = torch.device("cpu")
FILES = (CONFIG, WEIGHTS, "tokenizer.json", GENERATION)
GOLDEN = Path(__file__).parent.parent / "golden"


def stranger(folder: Path, copy: Path) -> Path:
    """A copy of a model folder without its checksums, so that it may be changed."""
    return shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("SHA256SUMS"))


@pytest.fixture(params=["trained", "perturbed"])
def folder(request: pytest.FixtureRequest, trained: Path, tmp_path: Path) -> Path:
    """A trained model; and the same with noise of the weights' own size, so that sinks, biases and router all show."""
    if request.param == "trained":
        return trained
    copy = stranger(trained, tmp_path / "perturbed")
    torch.manual_seed(0)
    weights = load_file(copy / WEIGHTS)
    noisy = {name: w + torch.randn_like(w) * w.std().clamp_min(0.02) for name, w in weights.items()}
    save_file(noisy, copy / WEIGHTS, metadata={"format": "pt"})
    return copy


def test_logits_equal_those_of_transformers(folder: Path) -> None:
    there = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(there).__name__ == "GptOssForCausalLM"
    here = read_model(folder, CPU)
    ids = torch.randint(here.config.vocab_size, (3, here.config.block_size))
    with torch.no_grad():
        expected = there(ids).logits
    torch.testing.assert_close(here(ids), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_tokens_equal_those_of_transformers(trained: Path) -> None:
    there = AutoTokenizer.from_pretrained(trained)
    here = Engine.load(trained, CPU).tokenizer
    for text in (FABLES.read_text(encoding="utf-8"), "Ž 日 🦊 l'été, « là » !\n\n\n  x\t", ""):
        ids = here.encode(text).tolist()
        assert there(text, add_special_tokens=False).input_ids == ids
        assert there(text).input_ids == [here.eot_id, *ids]  # as our own prompts begin
        assert there.decode(ids) == text
    assert there.convert_tokens_to_ids(EOT_TOKEN) == there.bos_token_id == there.eos_token_id == here.eot_id


def test_greedy_text_equals_that_of_transformers(folder: Path) -> None:
    there = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = Engine.load(folder, CPU)
    prompt = tokenizer("Un renard", return_tensors="pt")
    count = engine.model.config.block_size - prompt.input_ids.shape[1]
    expected = there.generate(**prompt, do_sample=False, max_new_tokens=count, eos_token_id=[])[0].tolist()
    ids = expected[: prompt.input_ids.shape[1]]
    tokens = generate_one(engine.model, ids, SamplingConfig(0), np.random.default_rng(0), engine.suppress_tokens)
    assert [*ids, *(next(tokens) for _ in range(count))] == expected


def judge(folder: Path, text: str) -> float:
    """Nats of a text by the rule of docs/measuring.md, through `transformers` alone and one window at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    end = tokenizer.convert_tokens_to_ids(EOT_TOKEN)
    ids = [end]
    for document in re.split(r"\n(?:[ \t]*\n){2,}", text.strip("\n")):
        ids += [*tokenizer(document, add_special_tokens=False).input_ids, end]
    block, last = model.config.max_position_embeddings, len(ids) - 1
    nats, start = 0.0, 0
    while start < last:  # predict the tokens start + 1 to end, after at most a block of context
        end = min(start + (block if start == 0 else block // 2), last)
        first = max(0, end - block)
        with torch.no_grad():
            logits = model(torch.tensor([ids[first:end]])).logits[0, start - first :].float()
        targets = torch.tensor(ids[start + 1 : end + 1])
        nats += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        start = end
    return nats


def test_likelihood_equals_that_of_transformers(folder: Path) -> None:
    text = FABLES.read_text(encoding="utf-8")[:3000]
    engine = Engine.load(folder, CPU)
    found = measure(engine.model, engine.tokenizer, text)
    assert found.nats_per_token * found.tokens == pytest.approx(judge(folder, text), rel=1e-5)


def test_the_folder_holds_what_it_promises(trained: Path) -> None:
    weights = load_file(trained / WEIGHTS)
    plain = torch.load(trained / "model.pt", weights_only=True)
    assert plain.keys() == weights.keys()
    assert all(torch.equal(plain[name], w) for name, w in weights.items())
    assert "lm_head.weight" in weights
    config = json.loads((trained / CONFIG).read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is False
    assert config["layer_types"] == ["sliding_attention", "full_attention"]
    assert config["rope_parameters"]["rope_type"] == "yarn"
    assert config["rope_parameters"]["factor"] == 1.0
    assert config["sliding_window"] == config["max_position_embeddings"] == 32
    assert config["mini_transformer"]["tokenizer"] == "char"
    for name in ("generated_text.txt", "loss_curve.png", "metrics.jsonl", "generation_config.json"):
        assert (trained / name).stat().st_size > 0, name
    assert not list(trained.rglob("*.temporary"))
    assert (trained / WEIGHTS).stat().st_mode == (trained / CONFIG).stat().st_mode


def damage(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    change(value)
    (folder / name).write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="llama"), "model_type is 'llama'"),
        (lambda c: c.pop("head_dim"), "the key 'head_dim' is missing"),
        (lambda c: c.update(swiglu_limit=9.0), r"swiglu_limit is 9.0, only 7.0"),
        (lambda c: c.update(hidden_size="32"), "hidden_size is '32'"),
        (lambda c: c.update(hidden_size=True), "hidden_size is True, expected a whole number"),
        (lambda c: c.update(hidden_size=10**30), "hidden_size is 1000000000000000000000000000000, expected"),
        (lambda c: c.update(hidden_size=2**40, num_attention_heads=2**40, num_key_value_heads=2**40), "too large"),
        (lambda c: c.update(sliding_window=None), "sliding_window is None"),
        (lambda c: c.update(layer_types=["full_attention"]), "layer_types must list 2"),
        (lambda c: c.update(layer_types=5), "layer_types must list 2"),
        (lambda c: c.update(layer_types=[[1], [1]]), "layer_types must list 2"),
        (lambda c: c.update(num_key_value_heads=5), "do not fit"),
        (lambda c: c.update(tie_word_embeddings="no"), "tie_word_embeddings is 'no', expected true or false"),
        (lambda c: c.update(rms_norm_eps="x"), "rms_norm_eps is 'x', expected a number"),
        (lambda c: c.update(rms_norm_eps=0), "rms_norm_eps is 0, expected a number"),
        (lambda c: c.update(rms_norm_eps=float("nan")), "rms_norm_eps is nan, expected a number"),
        (lambda c: c.update(mini_transformer=[1]), r"mini_transformer is \[1\], expected an object"),
        (lambda c: c.update(rope_parameters=[1]), "rope_parameters must name the rope_type"),
        (lambda c: c.update(rope_parameters=None), "rope_parameters must name the rope_type"),
        (lambda c: c.update(rope_scaling=[1]), "rope_scaling must name the rope_type"),
        (lambda c: c["rope_parameters"].pop("rope_theta"), "the key 'rope_theta' is missing"),
        (lambda c: c.update(rope_parameters={"rope_theta": 1e4}), "rope_type"),
        (lambda c: c["mini_transformer"].update(format=2), "format 2, this version of Mini-Transformer reads format 1"),
        (
            lambda c: c.update(num_hidden_layers=10**6, layer_types=["full_attention"] * 10**6),
            "holds no 1000000 layers",
        ),
        (
            lambda c: c.update(max_position_embeddings=10**9),
            "max_position_embeddings is 1000000000, expected a whole number",
        ),
        (lambda c: c.update(intermediate_size=10**12), r"has the shape .* asks for"),
        (lambda c: c.update(vocab_size=99999), r"has the shape .* asks for \(99999, 32\)"),
        (lambda c: c.update(num_hidden_layers=3, layer_types=["full_attention"] * 3), "layers.2.* is missing"),
    ],
)
def test_a_strange_configuration_is_refused(
    trained: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    folder = stranger(trained, tmp_path / "out")
    damage(folder, CONFIG, change)
    with pytest.raises(UserError, match=message):
        read_model(folder, CPU)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("rope_theta", value) for value in ("x", -1, 1, True, None, float("inf"), 10**400)],
        *[("factor", value) for value in ("x", 0, -2, 0.5, True, float("nan"), [4])],
        *[("original_max_position_embeddings", value) for value in ("x", 0, -1, 16.0, True)],
        *[("beta_fast", value) for value in ("x", 0, 1e-320, 1e300)],
        *[("beta_slow", value) for value in ("x", -1, True)],
        ("truncate", "x"),
    ],
)
def test_strange_rotary_values_are_refused_by_name(trained: Path, tmp_path: Path, key: str, value: object) -> None:
    folder = stranger(trained, tmp_path / "out")
    damage(folder, CONFIG, lambda c: c["rope_parameters"].update({"factor": 4.0, key: value}))
    with pytest.raises(UserError, match=rf"{re.escape(CONFIG)}: rope_parameters: {key} is .*, expected ") as error:
        read_model(folder, CPU)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(folder))


def older(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration as `transformers` 4 spells it, and OpenAI publishes it."""
    rope = dict(config.pop("rope_parameters"))
    theta = rope.pop("rope_theta")
    return {**config, "rope_theta": theta, "rope_scaling": rope if rope["rope_type"] == "yarn" else None}


@pytest.mark.parametrize("case", ["a_moe_alternating", "c_yarn_top1_mqa"])  # plain rotary, YaRN
def test_the_older_spelling_gives_the_same_model(case: str) -> None:
    config = json.loads((GOLDEN / case / CONFIG).read_text(encoding="utf-8"))
    wanted = config_from_json(config)
    assert config_from_json(older(dict(config))) == wanted
    assert config_from_json({**older(dict(config)), "rope_theta": 150000}).rope.theta == 150000


def test_the_rotary_positions_that_openai_published() -> None:
    config = older(json.loads((GOLDEN / "c_yarn_top1_mqa" / CONFIG).read_text(encoding="utf-8")))
    config["rope_theta"] = 150000
    config["rope_scaling"] = {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    }
    expected = RopeConfig("yarn", 150000.0, factor=32.0, original_context=4096, truncate=False)
    assert config_from_json(config).rope == expected
    del config["rope_theta"]
    with pytest.raises(UserError, match="the key 'rope_theta' is missing"):
        config_from_json(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w * float("nan"), "holds NaN or infinity"),
        (lambda w: torch.cat((w[1:], torch.tensor([float("-inf")]))), "holds NaN or infinity"),
        (lambda w: w.double() + 1e300, "holds NaN or infinity"),  # beyond float32
        (lambda w: w.to(torch.int32), "is of torch.int32, expected float32"),
        (lambda w: w > 0, "is of torch.bool, expected float32"),
    ],
)
def test_strange_weights_are_refused_by_name(
    trained: Path, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    folder = stranger(trained, tmp_path / "out")
    weights, name = load_file(folder / WEIGHTS), "model.layers.1.self_attn.sinks"
    weights[name] = change(weights[name])
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(UserError, match=rf"{re.escape(WEIGHTS)}: {re.escape(name)} {message}"):
        Engine.load(folder, CPU)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_types_are_read(trained: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = stranger(trained, tmp_path / "out")
    weights = {name: w.to(dtype) for name, w in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS)
    model = read_model(folder, CPU)
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"].float())


@pytest.mark.parametrize("name", [CONFIG, GENERATION])
def test_json_too_deep_is_refused_by_name(trained: Path, tmp_path: Path, name: str) -> None:
    folder = stranger(trained, tmp_path / "out")
    (folder / name).write_text("[" * 200_000)
    with pytest.raises(UserError, match=rf"{re.escape(name)}: cannot be read"):
        Engine.load(folder, CPU)


def test_what_is_no_configuration_is_refused() -> None:
    with pytest.raises(UserError, match="model_type is None"):
        config_from_json([])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.9])
def test_a_truncated_file_is_refused_by_name(trained: Path, tmp_path: Path, name: str, kept: float) -> None:
    folder = stranger(trained, tmp_path / "out")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError, match=re.escape(name)):
        Engine.load(folder, CPU)


def test_damaged_bytes_are_refused_or_do_no_harm(trained: Path, tmp_path: Path) -> None:
    """A file of a stranger with a few bytes changed, cut or doubled: one line, or it still reads; never a traceback."""
    chance = random.Random(0)
    folder = stranger(trained, tmp_path / "out")
    refused: list[str] = []
    for case in range(80):
        name = FILES[case % 4]
        whole = (folder / name).read_bytes()
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(min(len(damaged), 6000))
            damaged[place : place + chance.randrange(12)] = chance.randbytes(chance.randrange(6))
        (folder / name).write_bytes(damaged)
        try:
            Engine.load(folder, CPU).generate("Un été", 3, seed=1)
        except UserError as error:
            refused.append(str(error))
        (folder / name).write_bytes(whole)
    assert len(refused) > 40
    for line in refused:
        assert "\n" not in line
        assert any(name in line for name in FILES), line


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "tokenizer.json"])
def test_a_missing_file_is_named(trained: Path, tmp_path: Path, name: str) -> None:
    folder = stranger(trained, tmp_path / "out")
    (folder / name).unlink()
    with pytest.raises(UserError, match=re.escape(name)):
        Engine.load(folder, CPU)


def test_suppressed_tokens_must_be_ids(trained: Path, tmp_path: Path) -> None:
    folder = stranger(trained, tmp_path / "out")
    assert len(read_suppress_tokens(folder)) > 50
    damage(folder, GENERATION, lambda c: c.update(suppress_tokens=["x"]))
    with pytest.raises(UserError, match="suppress_tokens"):
        read_suppress_tokens(folder)
    damage(folder, GENERATION, lambda c: c.update(suppress_tokens=[True]))
    with pytest.raises(UserError, match="suppress_tokens"):
        read_suppress_tokens(folder)
    (folder / GENERATION).unlink()
    assert read_suppress_tokens(folder) == []


@pytest.mark.parametrize("context", [0, 1, 2**20 + 1, 2**200])
def test_a_context_that_no_model_has_is_refused(trained: Path, tmp_path: Path, context: int) -> None:
    folder = stranger(trained, tmp_path / "out")
    damage(folder, CONFIG, lambda c: c.update(max_position_embeddings=context))
    with pytest.raises(UserError, match=r"max_position_embeddings is .*, expected a whole number from 2 to 1048576"):
        Engine.load(folder, CPU)


def test_many_suppressed_tokens_cost_nothing(trained: Path, tmp_path: Path) -> None:
    folder = stranger(trained, tmp_path / "out")
    damage(folder, GENERATION, lambda c: c.update(suppress_tokens=[1, 2**60] * 500_000))
    assert Engine.load(folder, CPU).suppress_tokens == [1]


def test_weights_that_overflow_give_no_figure(trained: Path, tmp_path: Path) -> None:
    folder = stranger(trained, tmp_path / "out")
    save_file({name: torch.full_like(w, 3e38) for name, w in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    engine = Engine.load(folder, CPU)
    with pytest.raises(UserError, match="fables: the model gives it no probability"):
        measure(engine.model, engine.tokenizer, "Un renard", "fables")
    with pytest.raises(UserError, match="the model gives no token a probability"):
        engine.generate("Un", 3, seed=1)
