"""The metre of a line, and the analysis of whole texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_transformer.verse.rhyme import rhyme
from mini_transformer.verse.scansion import analyse, metre
from mini_transformer.verse.syllables import syllable_counts
from tests.conftest import ROOT

LA_FONTAINE = ROOT.parent / "shared" / "data" / "lafontaine.txt"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Je le vis, je rougis, je pâlis à sa vue;", 12),
        ("Ariane, ma sœur, de quel amour blessée", 12),
        ("Souvent, pour s'amuser, les hommes d'équipage", 12),
        ("Maître Corbeau, sur un arbre perché,", 10),
        ("La cigale, ayant chanté", 7),
        ("Un loup survient à jeun, qui cherchoit aventure,", 12),
        # Nine, eleven, thirteen syllables.
        ("De la musique avant toute chose", None),
        ("Le loup survient à jeun, cherchant aventure,", None),
        ("Un très grand loup survient à jeun, qui cherchoit aventure,", None),
        # Twelve syllables without a caesura, or with an article before it.
        ("Le petit écureuillon grignote sa noisette", None),
        ("Il voulait manger le fromage et la noisette", None),
        ("Je vis au bout de la prairie un vieux renard", None),
        # Prose.
        ("Il se leva de bonne heure et sortit sans bruit de la maison.", None),
    ],
)
def test_metre(line: str, expected: int | None) -> None:
    assert metre(line) == expected


def test_expected_metre_decides() -> None:
    line = "Hier, le vieux renard dormait"
    assert syllable_counts(line) == {7, 8}
    assert metre(line) == 8
    assert metre(line, expected=7) == 7


def test_five_and_five_needs_decasyllables_around() -> None:
    line = "Nous irons au bois cueillir du muguet"
    assert metre(line) is None
    assert metre(line, expected=10) == 10


TEXT = """LE LOUP ET LE GRILLON

Un grillon, certain soir, chantait près d'un ruisseau;
        Un loup passa, vit le museau,
Et, ne sachant que faire en si belle prairie,
        Dit: Chantez donc, je vous en prie.


LA POULE

La poule un matin s'en alla
        Sans savoir pourquoi au marché de la ville.
"""


def test_analyse() -> None:
    report = analyse(TEXT)
    assert [poem.title for poem in report.poems] == ["LE LOUP ET LE GRILLON", "LA POULE"]
    assert [verse.metre for verse in report.verses] == [12, 8, 12, 8, 8, None]
    assert [verse.partner for verse in report.verses] == [4, 3, 6, 5, None, None]
    assert report.classical == pytest.approx(5 / 6)
    assert report.rhymed == pytest.approx(4 / 6)
    assert report.metres == {8: 3, 12: 2}


def test_one_seven_among_eights_is_a_mistake() -> None:
    eights = ["Le vieux renard dormait souvent", "Il attendait le lendemain"] * 2
    mistake = "Le renard dormait souvent"
    assert metre(mistake) == 7
    assert analyse("\n".join([*eights, mistake])).verses[-1].metre is None
    assert analyse("\n".join([*eights, mistake, mistake])).verses[-1].metre == 7


def test_nothing_to_analyse() -> None:
    report = analyse("")
    assert report.verses == ()
    assert report.classical == report.rhymed == 0.0


@given(st.text())
def test_any_text_is_counted(text: str) -> None:
    assert all(count >= 0 for count in syllable_counts(text))
    report = analyse(text)
    assert 0.0 <= report.classical <= 1.0
    assert 0.0 <= report.rhymed <= 1.0


@given(st.text(alphabet="abcdeéèghilmnoqrstuvyœ' -,", max_size=60), st.sampled_from([".", ",", " !", "...", " »"]))
def test_final_punctuation_changes_nothing(line: str, punctuation: str) -> None:
    assert syllable_counts(line + punctuation) == syllable_counts(line)
    assert metre(line + punctuation) == metre(line)
    assert rhyme(line + punctuation) == rhyme(line)


@pytest.mark.skipif(not LA_FONTAINE.exists(), reason="the shared texts are not here")
def test_la_fontaine() -> None:
    report = analyse(LA_FONTAINE.read_text(encoding="utf-8"))
    assert report.classical > 0.95
    assert report.rhymed > 0.95
