"""Cleaning and filters, measured on answers that were written and labelled by hand.

`labelled_a.txt` was there while the filters were made. `labelled_b.txt` was written before they were run on it; what
they made of it then is told in docs/synthesis.md.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_transformer.data.sources import read_documents
from mini_transformer.errors import UserError
from mini_transformer.synthesis import filters
from mini_transformer.synthesis.cleaning import clean, plain
from mini_transformer.synthesis.filters import CHECKS, Candidate, Deduplicator, FilterPipeline, check, choose
from mini_transformer.synthesis.prompts import Kind, embedded_recipe, load

HERE = Path(__file__).parent
KINDS = {kind.name: kind for kind in load(embedded_recipe(), "fr").kinds}
VERSE = Kind("x", "verse", (1, 1000), 1, "", ())


@dataclass(frozen=True)
class Labelled:
    good: bool
    kind: Kind
    why: str
    raw: str


def labelled(name: str) -> list[Labelled]:
    found = []
    for part in re.split(r"^=== ", (HERE / name).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        head, _, raw = part.partition("\n")
        label, kind, *why = head.split(" ", 2)
        found.append(Labelled(label == "good", KINDS[kind], " ".join(why), raw))
    return found


@pytest.mark.parametrize(("name", "precision", "recall"), [("labelled_a.txt", 1.0, 1.0), ("labelled_b.txt", 0.96, 1.0)])
def test_the_labelled_answers(name: str, precision: float, recall: float) -> None:
    answers = labelled(name)
    assert len(answers) >= 50
    assert 20 <= sum(answer.good for answer in answers) <= len(answers) - 20
    kept_good = kept_bad = 0
    lines = []
    for answer in answers:
        text = clean(answer.raw)
        reason = check(Candidate(text, answer.kind, "fr", answer.why != "truncated"), tuple(CHECKS))
        kept_good += answer.good and reason is None
        kept_bad += not answer.good and reason is None
        if answer.good != (reason is None):
            lines.append(f"  wrong: {reason or 'kept'} ({answer.why or 'good'}): {text[:60]!r}")
    of_kept = kept_good / (kept_good + kept_bad)
    of_good = kept_good / sum(answer.good for answer in answers)
    print(f"{name}: {len(answers)} answers, precision {of_kept:.3f}, recall {of_good:.3f}", *lines, sep="\n")
    assert of_kept >= precision
    assert of_good >= recall


def test_cleaning_leaves_the_text_alone() -> None:
    """Of every good answer, the words that remain are a run of those that came, less what stood around them."""
    for answer in labelled("labelled_a.txt") + labelled("labelled_b.txt"):
        if answer.good:
            text = clean(answer.raw)
            assert not re.search(
                r"\*\*|```|^#|^>|think>|n'hésitez pas à me|^(?:bien sûr|sure|certainement)", text, re.I | re.M
            )
            assert all(line.strip() in re.sub(r"[*_]", "", answer.raw) for line in text.split("\n"))
            assert clean(text) == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("Bien sûr !\n\nVoici le poème :\n\nLa nuit\n\nvient", "La nuit\n\nvient"),
        ("Voici une fable :\nLe rat\nmange", "Le rat\nmange"),
        ("Voici venir le temps des roses,\nEt le vent.", "Voici venir le temps des roses,\nEt le vent."),
        ("hmm\n</think>\nLe rat", "Le rat"),
        ("<think>sans fin", ""),
        ("Le rat<|im_end|>\n<|im_start|>user", "Le rat"),
        ("**Titre : Le Rat**\n\n*Il* mange __tout__.", "Le Rat\n\nIl mange tout."),
        ("Le rat\n\n---\n\nNote : des alexandrins.", "Le rat"),
        ("« Le rat dit : “Oui.” »", "Le rat dit : “Oui.”"),
        ("« Non », dit le rat, « jamais »", "« Non », dit le rat, « jamais »"),
        ("Strophe 1 :\nLe rat\n\nStrophe 2 :\nmange", "Le rat\n\nmange"),
        ("Le rat\n\nCette fable montre que la faim est mauvaise.", "Le rat"),
        (
            "Le rat\n\nCette fable contient\nplus d'un enseignement.",
            "Le rat\n\nCette fable contient\nplus d'un enseignement.",
        ),
        ("Le rat\n\nMorale : Qui mange dort.", "Le rat\n\nQui mange dort."),
        ("Le rat\n\n**La morale de la fable :**\nQui mange dort.", "Le rat\n\nQui mange dort."),
        ("Le rat\n\nMORALITÉ\nQui mange dort.", "Le rat\n\nQui mange dort."),
        ("Sa moralité : nulle.\nMorale et loi.", "Sa moralité : nulle.\nMorale et loi."),
        ("&laquo;&nbsp;Non&nbsp;&raquo;, il n&#39;a rien, dit-il", "« Non », il n'a rien, dit-il"),
        ("&lt;think&gt;hmm&lt;/think&gt;Le rat & moi", "Le rat & moi"),
        ("un_mot_souligné et 3*4*5", "un_mot_souligné et 3*4*5"),
    ],
)
def test_what_is_taken_off(raw: str, text: str) -> None:
    assert clean(raw) == text


@given(st.text())
def test_any_text_is_one_document_once_it_is_plain(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    one = plain(text)
    assert plain(one) == one
    file = tmp_path_factory.getbasetemp() / "one.txt"
    file.write_bytes((one + "\n\n\nfin").encode())
    assert read_documents((file,)) == ([one, "fin"] if one.strip() else ["fin"])


@given(st.text(alphabet="ab*_#>`«»<think/>:\n —-", max_size=60))
def test_cleaning_never_fails(text: str) -> None:
    check(Candidate(clean(text), VERSE, "fr", True), [name for name in CHECKS if name != "language"])


def test_filters_are_chosen_by_name() -> None:
    assert choose("none") == ()
    assert set(choose("all")) == {*CHECKS, "duplicates", "quotes"}
    assert choose("verse,language") == ("language", "verse")
    with pytest.raises(UserError, match="'vers' is not one; there are all, none, and truncated"):
        choose("vers")
    assert check(Candidate("anything", VERSE, "fr", False), ()) is None
    assert check(Candidate(" \n", VERSE, "fr", True), ()) == filters.EMPTY


def test_what_a_text_is_rejected_for_is_told() -> None:
    fable = KINDS["fable"]
    excuse = "Je suis désolé, mais je ne peux pas écrire cela."
    assert check(Candidate(excuse, fable, "fr", True), tuple(CHECKS)) == "refusal"
    assert check(Candidate(clean("<think>Voyons"), fable, "fr", False), tuple(CHECKS)) == "truncated"
    assert check(Candidate(clean("<think>Voyons"), fable, "fr", True), tuple(CHECKS)) == "empty"


def test_quotations_are_rejected() -> None:
    avoided = ["Le jour où la pluie cessa de tomber sur la plaine"]
    pipeline = FilterPipeline(["quotes"], "fr", avoided)
    assert pipeline("Et le jour où la pluie\ncessa de tomber, il dit :", VERSE, True)[1] == "quote"
    assert pipeline("Le jour où la pluie cessa, on dansa", VERSE, True)[1] is None


def test_duplicates_exact_and_near() -> None:
    texts = [clean(answer.raw) for answer in labelled("labelled_a.txt") if answer.good]
    seen = Deduplicator()
    assert [seen.add(text) for text in texts] == [None] * len(texts)
    assert seen.add(texts[0].upper().replace(",", " ;")) == "duplicate"
    lines = texts[1].split("\n")
    assert seen.add("\n".join(["UN AUTRE TITRE", *lines[1:-2], "Et voici pour finir un vers que j'ai changé."])) == (
        "near-duplicate"
    )
    assert seen.add("\n".join([*lines[:3], *texts[2].split("\n")[:4], *texts[3].split("\n")[:9]])) is None


def test_duplicates_in_any_script() -> None:
    seen = Deduplicator()
    texts = ["Лиса и виноград висят", "Ворон и лисица спорят", "狐狸和葡萄", "乌鸦与狐狸"]
    assert [seen.add(text) for text in texts] == [None] * 4
    assert [seen.add(text) for text in texts] == ["duplicate"] * 4
