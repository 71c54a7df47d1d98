"""Recipes: those of the package, one of one's own, the record of a run, and broken ones."""

import dataclasses
import json
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from mini_transformer.config import check
from mini_transformer.errors import UserError
from mini_transformer.recipes import expected_bits, load_recipe, recipe_names
from mini_transformer.settings import train_config

Call = Callable[..., tuple[int, str, str]]

ONE, TWO = {"data": "a.txt"}, {"pretrain_data": "a.txt", "finetune_data": "b.txt"}
SHAPE = ("n_layer", "n_embd", "n_head", "block_size", "batch_size", "dropout")


def test_the_names_are_those_of_the_docs() -> None:
    fables = ["fables-10min", "fables-1h", "finetune"]
    french = ["french-large", "french-then-fables"]
    assert recipe_names() == ["base", *fables, *french, "gpu", "laptop", "mission", "shakespeare-3min", "tiny"]


@pytest.mark.parametrize("name", recipe_names())
def test_each_says_what_it_is_for_and_what_was_measured(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert 20 < len(recipe.about) < 100
    table = tomllib.loads((resources.files("mini_transformer.recipes") / f"{name}.toml").read_text("utf-8"))
    assert table["measured"]["result"]
    if table["measured"]["result"] != "not measured yet":
        assert {"command", "machine", "date"} <= table["measured"].keys()
    for given in (ONE, TWO):
        check(train_config(given, recipe.settings))


@pytest.mark.parametrize(
    ("name", "shape", "one", "two"),
    [
        ("tiny", (4, 128, 4, 128, 8, 0.1), (800, 2e-3), (800, 1.2e-3)),
        ("laptop", (4, 192, 6, 256, 16, 0.2), (2000, 1e-3), (2000, 6e-4)),
        ("mission", (24, 512, 8, 256, 64, 0.2), (10_000, 5e-4), (10_000, 3e-4)),
    ],
)
def test_their_values(name: str, shape: tuple[float, ...], one: tuple[float, ...], two: tuple[float, ...]) -> None:
    config = train_config(ONE, load_recipe(name).settings)
    values = dataclasses.asdict(config.model) | dataclasses.asdict(config.optim)
    assert tuple(values[key] for key in SHAPE) == shape
    phases = train_config(TWO, load_recipe(name).settings).phases
    assert [(p.iters, p.lr) for p in (*config.phases, *phases)] == [one, two, one]


def test_the_mission_is_what_trains_without_a_recipe() -> None:
    for given in (ONE, TWO):
        assert train_config(given, load_recipe("mission").settings) == train_config(given)


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('\ufeffabout = "À moi."\n[settings]\nn_layer = 3\nlr = 1\ndata_weights = [1, 2.5]\n', "utf-8")
    recipe = load_recipe(file)
    assert (recipe.name, recipe.about) == (str(file), "À moi.")
    assert recipe.settings == {"n_layer": 3, "lr": 1.0, "data_weights": (1.0, 2.5)}


def test_the_record_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    record = {"finished": False, "settings": {"n_layer": 3}, "fingerprints": {"train": "ab"}, "environment": {}}
    file.write_text(json.dumps(record))
    recipe = load_recipe(str(file))
    assert (recipe.settings, recipe.fingerprints) == ({"n_layer": 3}, {"train": "ab"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", b"", "no recipe: it has no table of settings"),
        ("a.toml", b"settings = 3", "no recipe: it has no table of settings"),
        ("a.toml", b"[settings]\nn_layer = ", "cannot be read as TOML"),
        ("a.toml", b"\xff\xfe", "cannot be read as TOML"),
        ("a.toml", b"x = " + b"[" * 100_000, "cannot be read as TOML"),
        ("a.toml", b"#" * (1 << 20) + b"\n[settings]", "too large for a recipe"),
        ("a.toml", b"n_layer = 3\n[settings]", "n_layer: unknown; settings stand below"),
        ("a.toml", b"about = 3\n[settings]", "about: expected a text"),
        ("a.toml", b"[settings]\nn_layers = 3", "n_layers: unknown setting; did you mean n_layer?"),
        ("a.toml", b"[settings.model]\nn_layer = 3", "model: unknown setting"),
        ("a.toml", b"[settings]\nn_layer = '3'", "n_layer: '3': expected a whole number"),
        ("a.toml", b"[settings]\nn_layer = 0", "n_layer: 0 is too small: at least 1"),
        ("a.toml", b"[settings]\nn_layer = 0x" + b"f" * 9000, "n_layer: the number is too large"),
        ("a.toml", b"[settings]\nlr = nan", "lr: nan is not a number to work with"),
        ("a.toml", b"[settings]\ninit_from = 'x'", "init_from: concerns one machine or one call: give it as a flag"),
        ("a.toml", b"[settings]\nout_dir = 'x'", "out_dir: concerns one machine or one call: give it as a flag"),
        ("run.json", b"[]", "no recipe: it has no table of settings"),
        ("run.json", b"{", "cannot be read as JSON"),
        ("run.json", b"[" * 100_000, "cannot be read as JSON"),
        ("run.json", b'{"settings": {"--n-layer": 3}}', "--n-layer: unknown setting"),
        ("run.json", b'{"settings": {}, "fingerprints": {"train": 3}}', "fingerprints: expected a table of texts"),
    ],
)
def test_a_broken_one_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_recipe(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: {message}")


def test_a_name_that_is_no_recipe() -> None:
    with pytest.raises(UserError, match="`recipe`: 'lapto' is no recipe; did you mean laptop"):
        load_recipe("lapto")
    with pytest.raises(UserError, match=r"`recipe`: 'out' is no recipe; there are base, .* tiny, or name a"):
        load_recipe("out")


def test_the_curve_of_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[settings]\n[measured]\ncurve = [[0.5, 2.0], [0.1, 4], [1, 1.8]]\n")
    curve = load_recipe(file).curve
    assert [expected_bits(curve, share) for share in (0.0, 0.1, 0.3, 0.5, 1.0)] == [None, 4, 3, 2, 1.8]
    assert expected_bits((), 0.5) is None
    for wrong in ("[1, 2]", "[[1, 2, 3]]", '[["a", 2]]', "[[1, nan]]", "3"):
        file.write_text(f"[settings]\n[measured]\ncurve = {wrong}\n")
        with pytest.raises(UserError, match=r"mine\.toml: curve: expected pairs"):
            load_recipe(file)


def test_a_run_is_compared_with_that_of_its_recipe(call: Call, fables: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    settings = "n_layer = 1\nn_embd = 32\nn_head = 2\nblock_size = 16\nbatch_size = 2\neval_interval = 10"
    file.write_text(f"[settings]\n{settings}\n[measured]\ncurve = [[0.25, 5.0], [1, 2.0]]\n")
    code, told, error = call(
        "train", "--data", fables, "--recipe", file, "--max-iters", 40, "--out-dir", tmp_path / "out"
    )
    assert code == 0, error
    shown = [line for line in told.splitlines() if line.startswith("train ")]
    assert ["the recipe's run had" in line for line in shown] == [False, True, True, True, True]
    assert "; the recipe's run had 4.000)" in shown[2]
