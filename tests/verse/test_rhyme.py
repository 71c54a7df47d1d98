"""Whether two lines or words rhyme."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_transformer.verse.rhyme import rhyme, rhymes

RHYMING = [
    ("perché", "alléché"),
    ("fromage", "langage"),
    ("joie", "proie"),
    ("flatteur", "chanteur"),
    ("chanter", "manger"),
    ("donnez", "nez"),
    ("été", "dépourvue de beauté"),
    ("lit", "esprit"),
    ("enfant", "vent"),
    ("temps", "printemps"),
    ("longtemps", "contents"),
    ("faim", "fin"),
    ("main", "dessein"),
    ("bien", "chien"),
    ("moyen", "rien"),
    ("loin", "point"),
    ("maison", "raison"),
    ("eau", "mot"),
    ("bientôt", "oiseau"),
    ("feu", "vœu"),
    ("fille", "famille"),
    ("ville", "tranquille"),
    ("bataille", "volaille"),
    ("soleil", "réveil"),
    ("orgueil", "écureuil"),
    ("montagne", "campagne"),
    ("terre", "misère"),
    ("race", "passe"),
    ("nous fûmes", "légumes"),
    ("femme", "âme"),
    ("automne", "couronne"),
    ("honte", "compte"),
    ("avoit", "toit"),
    ("étoit", "mais"),
    ("connoître", "maître"),
    ("chantaient", "jamais"),
    ("aiment", "blasphèment"),
    ("dis-je", "prodige"),
    ("voyage", "sage"),
    ("pays", "amis"),
    ("hiver", "vert"),
    ("blanc", "rang"),
    ("il eut", "vu"),
    ("lui", "ennemi"),
]
NOT_RHYMING = [
    ("fromage", "fromage"),
    ("mer", "mère"),
    ("aimé", "aimée"),
    ("roi", "joie"),
    ("chat", "chien"),
    ("loup", "lu"),
    ("main", "mais"),
    ("pain", "pan"),
    ("bon", "banc"),
    ("fille", "file"),
    ("poule", "poutre"),
    ("porte", "perte"),
    ("race", "base"),
    ("hiver", "beauté"),
    ("soleil", "seuil"),
    ("cage", "cache"),
    ("sot", "sou"),
    ("ils aiment", "moment"),
    ("bois", "mais"),
    ("il s'en va sur le", "il est mauvais"),
    ("", "chat"),
]


@pytest.mark.parametrize(("first", "second"), RHYMING)
def test_rhymes(first: str, second: str) -> None:
    assert rhymes(first, second)
    assert rhymes(second, first)


@pytest.mark.parametrize(("first", "second"), NOT_RHYMING)
def test_does_not_rhyme(first: str, second: str) -> None:
    assert not rhymes(first, second)
    assert not rhymes(second, first)


def test_gender_of_rhymes() -> None:
    masculine, feminine = rhyme("Le renard sort du bois"), rhyme("Il court dans la prairie")
    assert masculine is not None
    assert feminine is not None
    assert not masculine.feminine
    assert feminine.feminine


@given(st.text())
def test_nothing_rhymes_with_itself(text: str) -> None:
    assert not rhymes(text, text)
