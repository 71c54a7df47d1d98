"""Prompts: a pure function of recipe, seed and number; balanced and varied."""

import re
from collections import Counter
from pathlib import Path

import pytest

from mini_transformer.errors import UserError
from mini_transformer.synthesis.prompts import embedded_recipe, load, sample_seed

RECIPE = load(embedded_recipe(), "fr")


def test_the_prompts_of_a_run_are_balanced_and_varied() -> None:
    prompts = [RECIPE.prompt(number, 1337) for number in range(5000)]
    assert len({prompt.text for prompt in prompts}) >= 4990  # of 109,200 possible moralities, a few come twice
    assert set(Counter(prompt.kind.name for prompt in prompts).values()) == {1000}
    for kind in RECIPE.kinds:
        for slot in kind.slots:
            counts = Counter(prompt.slots[slot] for prompt in prompts if prompt.kind is kind)
            assert len(counts) == len(RECIPE.slots[slot])
            assert max(counts.values()) - min(counts.values()) <= 1, (kind.name, slot)


def test_a_shard_is_as_varied_as_the_whole() -> None:
    shard = [RECIPE.prompt(number, 7) for number in range(1, 1000, 5)]
    assert set(Counter(prompt.kind.name for prompt in shard)) == {kind.name for kind in RECIPE.kinds}


def test_prompts_depend_on_the_seed_and_on_nothing_else() -> None:
    assert RECIPE.prompt(41, 1) == load(embedded_recipe(), "fr").prompt(41, 1)
    assert RECIPE.prompt(41, 1) != RECIPE.prompt(41, 2)
    prompt = RECIPE.prompt(3, 1)
    assert "{" not in prompt.text + prompt.system
    assert all(value in prompt.text for value in prompt.slots.values())
    assert "anglais" in load(embedded_recipe(), "en").prompt(3, 1).text


def test_each_attempt_has_a_seed_of_its_own() -> None:
    seeds = {sample_seed(seed, number, attempt) for seed in (1, 2) for number in range(500) for attempt in range(3)}
    assert len(seeds) > 2990
    assert all(0 <= seed < 2**31 for seed in seeds)


GOOD = """
system = "Tu écris en {language}."
[languages]
fr = "français"
[kinds.fable]
form = "verse"
share = 2
prompt = "Une fable sur {animal}."
[kinds.conte]
form = "prose"
prompt = "Un conte sans rien."
[slots]
animal = ["un rat", "un chat"]
"""


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(GOOD, encoding="utf-8")
    recipe = load(tmp_path / "r.toml", "fr")
    prompts = [recipe.prompt(number, 1) for number in range(6)]
    assert Counter(prompt.kind.name for prompt in prompts) == {"fable": 4, "conte": 2}
    assert {prompt.text for prompt in prompts[:3]} == {
        "Une fable sur un rat.",
        "Une fable sur un chat.",
        "Un conte sans rien.",
    }
    assert prompts[0].system == "Tu écris en français."


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[slots]", "[slots", "no valid TOML"),
        ('system = "Tu écris en {language}."', "", "system: expected a text, found nothing"),
        ("{animal}", "{bête}", "kinds.fable.prompt: {bête} is none of the slots animal"),
        ('form = "verse"', 'form = "vers"', "kinds.fable.form: expected one of verse, prose, dialogue, found 'vers'"),
        ("share = 2", "share = 0", "kinds.fable.share: expected a whole number"),
        ("share = 2", "words = [9, 3]", "kinds.fable.words: expected [fewest, most]"),
        ('"un chat"', '"un rat"', "slots.animal: 'un rat' stands there twice"),
        ('["un rat", "un chat"]', "[]", "slots.animal: expected a list of texts"),
        ("share = 2", "shares = 2", "kinds.fable.shares: unknown; there are form, words, share, prompt"),
        ("system =", "temperature = 1\nsystem =", "temperature: unknown; there are system, languages, kinds, slots"),
        ("[slots]", '[slots]\nlieu = ["ici"]', "slots.lieu: no prompt has {lieu}; use it or take it out"),
        ("{animal}", "{animal} et { y }", "kinds.fable.prompt: { y } is none of the slots animal"),
        ("{animal}", "{animal} et {z z}", "kinds.fable.prompt: {z z} is none of the slots animal"),
        ("{animal}", "{animal} et {lieu-dit}", "kinds.fable.prompt: {lieu-dit} is none of the slots animal"),
        ("{animal}", "{animal} et {lieu-dit", "kinds.fable.prompt: { is none of the slots animal"),
        ("un rat", "un rat de {language}", "slots.animal: {language} is none of the slots (none here)"),
        ("en {language}", "en {animal}", "system: {animal} is none of the slots (none here)"),
        ('fr = "français"', 'en = "anglais"', "`language`: fr is not in"),
    ],
)
def test_a_wrong_recipe_is_refused_by_its_entry(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    (tmp_path / "r.toml").write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "r.toml", "fr")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_how_a_recipe_may_be_encoded(tmp_path: Path) -> None:
    for name, encoding in (("plain", "utf-8"), ("marked", "utf-8-sig"), ("old", "latin-1")):
        (tmp_path / name).write_text(GOOD, encoding=encoding)
    assert load(tmp_path / "marked", "fr") == load(tmp_path / "plain", "fr")
    with pytest.raises(UserError, match=r"old: is not in UTF-8, as a recipe must be; save it as UTF-8$"):
        load(tmp_path / "old", "fr")
    with pytest.raises(UserError, match=r"none: cannot be read \(No such file or directory\)$"):
        load(tmp_path / "none", "fr")
    with pytest.raises(UserError, match=r": cannot be read \(Is a directory\)$"):
        load(tmp_path, "fr")


def test_the_values_of_the_recipe_fit_into_any_prompt() -> None:
    """No contraction or elision is due before a value, sentences end once, and seasons stand in one list only."""
    for number in range(2000):
        prompt = RECIPE.prompt(number, 3)
        assert not re.search(r"\b(?:à|de) les?\b|\b(?:de|que|le|la) [aeéèêiou]|\?\.|\.\.|  | [,.]", prompt.text), (
            prompt.text
        )
        assert sum(name in prompt.slots for name in ("hour", "moment")) <= 1
    season = re.compile(r"neige|\bgel|hiver|canicule|automne|printemps|octobre|novembre|moissons|hirondelles")
    for name, values in RECIPE.slots.items():
        assert name in ("hour", "moment") or not season.search(" ".join(values)), name
    poem = next(kind for kind in RECIPE.kinds if kind.name == "poème")
    fable = next(kind for kind in RECIPE.kinds if kind.name == "fable")
    assert not set(poem.slots) & set(fable.slots)
