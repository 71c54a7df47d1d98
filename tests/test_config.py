"""Settings: declared once, limited, named; from a dictionary to a run, and back to its record."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mini_transformer.config import (
    GenerateConfig,
    ModelConfig,
    OptimConfig,
    Phase,
    PhaseSettings,
    RunConfig,
    SamplingConfig,
    TextConfig,
    TrainConfig,
    check,
    option,
)
from mini_transformer.errors import UserError
from mini_transformer.settings import SETTINGS, fill, recorded_settings, settings_difference, train_config

PARTS = (PhaseSettings, TextConfig, ModelConfig, OptimConfig, RunConfig, SamplingConfig, GenerateConfig)
PHASES = (Phase("train", (Path("a.txt"),), 10, 1e-3),)
TWO: dict[str, Any] = {"pretrain_data": "a.txt", "finetune_data": ["b.txt"]}


def test_every_setting_has_a_help_text_and_a_name_of_its_own() -> None:
    for part in PARTS:
        for f in dataclasses.fields(part):
            assert not f.metadata or f.metadata["help"], f.name
    named = [f.name for part in PARTS[:5] for f in dataclasses.fields(part) if f.metadata]
    assert sorted(named) == sorted(SETTINGS)


def test_every_default_is_within_its_limits() -> None:
    for part in PARTS:
        fill(part, {f.name: f.default for f in dataclasses.fields(part) if f.metadata})


def test_a_limit_that_nobody_checks_is_no_limit() -> None:
    with pytest.raises(TypeError, match="least"):
        option(1, "", least=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_layer": 0}, "`n_layer`: 0 is too small: at least 1"),
        ({"n_layer": 10**6}, "`n_layer`: 1000000 is too large: at most 1000"),
        ({"n_layer": 10**5000}, "`n_layer`: the number is too large"),
        ({"n_layer": 4.0}, "`n_layer`: 4.0: expected a whole number"),
        ({"n_layer": True}, "`n_layer`: True: expected a whole number"),
        ({"overwrite": 1}, "`overwrite`: 1: expected true or false"),
        ({"lr": "fast"}, "`lr`: 'fast': expected a number"),
        ({"lr": float("nan")}, "`lr`: nan is not a number to work with"),
        ({"lr": 0}, "`lr`: 0.0 is too small: it must be above 0.0"),
        ({"lr": 10**400}, "`lr`: the number is too large"),
        ({"dropout": -0.1}, "`dropout`: -0.1 is too small: at least 0"),
        ({"device": "gpu"}, "`device`: 'gpu' is none of auto, cpu, cuda, mps"),
        ({"encoding": ""}, "`encoding`: an empty name"),
        ({"out_dir": ["a"]}, r"`out_dir`: \['a'\]: expected a text"),
        ({"data_weights": [1.0, 0]}, "`data_weights`: 0.0 is too small: it must be above 0"),
        ({"data_weights": [1.0, 2.0]}, "`data`: 2 weights for 1 sources"),
        ({"data": []}, "`data`: missing"),
        ({"data": [3]}, "`data`: 3: expected a text"),
        ({"n_layers": 3}, "`n_layers`: unknown setting; did you mean n_layer?"),
        ({"batch-size": 3}, "`batch-size`: unknown setting; did you mean batch_size?"),
        ({"zzz": 3}, "`zzz`: unknown setting$"),
        ({"lr_pretrain": 1e-3}, "`lr_pretrain`: belongs to training in two phases"),
        (TWO, "`data`: one phase, or `pretrain_data` and `finetune_data` for two; not both"),
        ({"data": None, "finetune_data": "b.txt"}, "`pretrain_data`: missing"),
        (TWO | {"data": None, "lr": 0.1}, "`lr`: belongs to training in one phase"),
    ],
)
def test_a_wrong_setting_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        train_config({"data": "a.txt"} | values)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": ModelConfig(n_head=7)}, "`n_head`: 7 heads do not divide a width (`n_embd`) of 512"),
        ({"model": ModelConfig(n_embd=30, n_head=3)}, "`n_embd`: must be a multiple of 4, not 30"),
        ({"model": ModelConfig(n_layer=0)}, "`n_layer`: 0 is too small"),
        ({"model": ModelConfig(n_experts=2, experts_per_token=3)}, "`experts_per_token`: 3 is more than the 2"),
        ({"text": TextConfig(vocab_size=300)}, "`vocab_size`: goes with `tokenizer` bpe, not char"),
        ({"text": TextConfig(tokenizer="bpe", vocab_size=5)}, "`vocab_size`: 5 is too small"),
        ({"text": TextConfig(replay=0.5)}, "`replay`: goes with `pretrain_data` and `finetune_data`"),
        ({"text": TextConfig(preview=0.5)}, "`preview`: goes with `pretrain_data` and `finetune_data`"),
        ({"optim": OptimConfig(grad_clip=0.0)}, "`grad_clip`: 0.0 is too small: it must be above 0"),
        ({"run": RunConfig(eval_iters=0)}, "`eval_iters`: 0 is too small"),
        ({"phases": (Phase("train", (), 0, 1e-3),)}, "`max_iters`: 0 is too small"),
        ({"phases": (*PHASES, Phase("finetune", (), 5, 2.0))}, "`lr_finetune`: 2.0 is too large"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check(TrainConfig(**{"phases": PHASES} | parts))
    assert str(caught.value).startswith(message)


def test_given_settings_win_over_the_recipe_and_the_recipe_over_the_defaults() -> None:
    recipe = {"n_layer": 4, "n_embd": 64, "lr": 1e-2, "lr_finetune": 1e-3, "replay": 0.2, "data_weights": (2.0, 1.0)}
    one = train_config({"data": [Path("a.txt"), "b.txt"], "n_layer": 2, "val_data": "v.txt"}, recipe, {"train": "ab"})
    assert (one.model.n_layer, one.model.n_embd, one.model.n_head) == (2, 64, 8)
    assert one.phases == (Phase("train", (Path("a.txt"), Path("b.txt")), 10_000, 1e-2, (2.0, 1.0)),)
    assert (one.text.replay, one.run.val_data, one.fingerprints) == (0.0, Path("v.txt"), {"train": "ab"})
    two = train_config(TWO, recipe)
    assert [(p.name, p.lr, p.weights) for p in two.phases] == [("pretrain", 3e-4, ()), ("finetune", 1e-3, ())]
    assert two.text.replay == 0.2


@pytest.mark.parametrize("tokenizer", ["char", "some/folder"])
def test_another_tokenizer_than_the_recipes_goes_with_every_recipe(tokenizer: str) -> None:
    recipe = {"tokenizer": "bpe", "vocab_size": 1024, "bpe_dropout": 0.1}
    assert train_config({"data": "a.txt"}, recipe).text.vocab_size == 1024
    config = train_config({"data": "a.txt", "tokenizer": tokenizer}, recipe)
    check(config)
    assert (config.text.tokenizer, config.text.vocab_size, config.text.bpe_dropout) == (tokenizer, 0, 0.0)
    with pytest.raises(UserError, match="`bpe_dropout`: goes with `tokenizer` bpe"):
        check(train_config({"data": "a.txt", "bpe_dropout": 0.1}))


def test_a_setting_that_is_newer_than_a_record_had_its_default() -> None:
    here = recorded_settings(train_config({"data": "a.txt"}))
    there = {name: value for name, value in here.items() if name != "bpe_dropout"}
    assert settings_difference(there, here) == ""
    assert settings_difference(there, here | {"bpe_dropout": 0.1}) == "`bpe_dropout`: none there, 0.1 here"


def test_what_is_recorded_repeats_the_run_and_names_nothing_of_this_machine(tmp_path: Path) -> None:
    given = TWO | {"finetune_data": ["b", "c"], "finetune_data_weights": [3, 1], "max_iters_pretrain": 7, "seed": 5}
    machine = {"out_dir": tmp_path, "cache_dir": tmp_path, "device": "cpu", "val_data": tmp_path, "overwrite": True}
    config = train_config(given | machine | {"tokenizer": str(tmp_path), "text_field": "body"})
    record = recorded_settings(config)
    assert json.loads(json.dumps(record)) == record
    assert str(tmp_path) not in str(record)
    assert not record.keys() & {*machine, "gpus", "in_memory", "max_iters", "data", "finetune_data"}
    assert record["tokenizer"] == tmp_path.name
    assert (record["encoding"], record["text_field"], record["max_unreadable"]) == ("utf-8", "body", 100)
    assert (record["max_iters_pretrain"], record["lr_finetune"], record["replay"]) == (7, 5e-4, 0.0)
    data = {"pretrain_data": "a.txt", "finetune_data": ["b", "c"]}
    again = train_config(data, record)
    assert again.phases == config.phases
    assert recorded_settings(again) == record
    hub = train_config({"data": "a.txt", "tokenizer": "org/name"})
    assert recorded_settings(hub)["tokenizer"] == "org/name"


def test_the_first_difference_that_matters_is_named() -> None:
    def recorded(**values: Any) -> Mapping[str, Any]:
        return json.loads(json.dumps(recorded_settings(train_config({"data": "a.txt"} | values))))

    there = recorded(n_layer=4)
    assert settings_difference(there, recorded(n_layer=4)) == ""
    assert settings_difference(there, recorded(n_layer=6)) == "`n_layer`: 4 there, 6 here"
    assert settings_difference(there, recorded(n_layer=4, lr=1e-3)) == "`lr`: 0.0005 there, 0.001 here"
    free = {"sample_interval": 3, "checkpoint_interval": 3, "encoding": "latin-1"}
    assert settings_difference(there, recorded(n_layer=4, device="cpu", text_field="body", **free)) == ""
    assert settings_difference({}, {"lr": 0.1}) == "`lr`: none there, 0.1 here"
    assert settings_difference({"new": 1}, {}) == "`new`: 1 there, none here"
    assert settings_difference({"lr": "x" * 10_000}, {"lr": 0.1}) == "`lr`: ... there, 0.1 here"
