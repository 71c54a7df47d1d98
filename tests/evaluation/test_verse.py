"""The verse checker: syllables, metres, rhymes and whole texts."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_transformer.evaluation.verse import analyse, main, metre, rhyme, rhymes, syllable_counts

FABLES = Path(__file__).parents[3] / "shared" / "data" / "lafontaine.txt"

COUNTED = [
    # Mute e: counted before a consonant, fallen before a vowel or a mute h and at the end of the verse.
    ("Une belle poule couve sept œufs bruns", "11"),
    ("La poule avide avale une herbe", "8"),
    ("L'autre homme hésite et l'ombre approche", "8"),
    ("La grande rivière emporte la barque", "10"),
    ("Les poules ouvrent une aile", "7"),
    ("Les loups parlent à la lune", "7"),
    ("Le chat ne me le rendra pas", "8"),
    ("Maître Corbeau, sur un arbre perché,", "10"),
    ("Tenait en son bec un fromage.", "8"),
    ("La raison du plus fort est toujours la meilleure:", "12"),
    # A vowel before the mute e.
    ("La vie est une longue nuit", "8"),
    ("La fée envoie une pluie épaisse", "9"),
    ("Il avouera qu'il oubliera", "8"),
    ("Un prompt paiement fait taire", "6"),
    ("Ils avaient faim, ils criaient fort", "8"),
    ("Ils avoient soif, ils étoient deux", "8"),
    # Aspirated and mute h, oui, onze.
    ("Une haute haie autour du hameau", "10"),
    ("Le hibou hait une hirondelle", "8"),
    ("Une histoire honnête est utile", "8"),
    ("Le héros craint l'héroïne", "7"),
    ("Une huître, une hache", "5"),
    ("Elle en prit onze", "4"),
    ("Le hérisson heurte une herse", "8"),
    ("Onze loups", "3"),
    # Hyphens and apostrophes.
    ("Que me donne-t-elle aujourd'hui ?", "8"),
    ("Porte-t-il le blé au moulin", "8"),
    ("Que dis-je ? Où suis-je ? Est-ce ici ?", "7"),
    ("Qu’as-tu vu, l’ami ? – Rien du tout.", "8"),
    ("Lorsqu'on entr'ouvre la porte", "7"),
    # -ent.
    ("Le vent souvent se lève lentement", "10"),
    ("Les enfants aiment et dorment", "7"),
    ("Un moment de contentement", "8"),
    ("Il tient ce qu'ils tiennent du roi", "8"),
    # Synaeresis.
    ("Le chien du ciel n'a rien de bien", "8"),
    ("Dieu fit la lumière et le miel", "8"),
    ("La pitié du premier guerrier", "8"),
    ("Un diable a mis le pied en ce vieux lieu", "10"),
    ("La nuit, le fruit tombe sans bruit", "8"),
    ("Nous voulions et nous étions seuls", "8"),
    ("Monsieur, vos yeux sont bien meilleurs", "8"),
    ("Le siècle tient l'assiette tiède", "8"),
    # Diaeresis.
    ("Le lion a des passions", "8"),
    ("L'ambitieux est furieux", "8"),
    ("Il faut prier, crier, plier", "8"),
    ("L'ouvrier fait une prière", "8"),
    ("La patience et la science", "8"),
    ("Un diamant, un violon", "8"),
    ("Le cruel duel du muet", "8"),
    ("Il va louer et puis jouer", "8"),
    ("Le musicien du fier marquis", "9/10"),
    ("La nation veut l'union", "8"),
    ("La ruine du druide", "7"),
    ("Le nuage avance et salue", "8"),
    ("L'étudiant est oublieux", "8"),
    # y and tréma.
    ("Le royal voyageur du pays", "9"),
    ("Les joyeux moyens ennuyeux", "8"),
    ("Le païen naïf hait Noël", "8"),
    ("Mes aïeux du temps de Moïse", "8"),
    # Digraphs and mute letters.
    ("L'écureuil cueille un œillet rouge", "8"),
    ("Georges mangea cinq pigeons", "7"),
    ("La guêpe guette quatre quilles", "8"),
    ("Le paon au mois d'août se fait beau", "8"),
    ("Le coeur de ma soeur & le boeuf", "8"),
    ("L'aiguille aiguë", "4"),
    ("Le géant craint l'océan bleu", "8"),
    # Usage hesitates.
    ("Hier", "1/2"),
    ("Un ancien roi", "4/5"),
    ("Le poète", "2/3"),
    # Old spelling.
    ("Il connoissoit un foible roy", "8"),
    ("Le poëte étoit françois, dit-on", "8/9"),
    # Nothing to count.
    ("", "0"),
    ("!... — ;", "0"),
    ("Le 12 mai", ""),
]


@pytest.mark.parametrize(("line", "counts"), COUNTED)
def test_syllables(line: str, counts: str) -> None:
    assert "/".join(map(str, sorted(syllable_counts(line)))) == counts


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
        # Twelve syllables, no word that ends on the sixth, or only an article.
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


def test_five_and_five_needs_tens_around() -> None:
    line = "Nous irons au bois cueillir du muguet"
    assert metre(line) is None
    assert metre(line, expected=10) == 10


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
    assert [verse.mate for verse in report.verses] == [4, 3, 6, 5, None, None]
    assert report.classical == pytest.approx(5 / 6)
    assert report.rhymed == pytest.approx(4 / 6)
    assert report.metres == {8: 3, 12: 2}


def test_one_seven_among_eights_is_a_slip() -> None:
    eights = ["Le vieux renard dormait souvent", "Il attendait le lendemain"] * 2
    slip = "Le renard dormait souvent"
    assert metre(slip) == 7
    assert analyse("\n".join([*eights, slip])).verses[-1].metre is None
    assert analyse("\n".join([*eights, slip, slip])).verses[-1].metre == 7


def test_nothing_to_analyse() -> None:
    report = analyse("")
    assert report.verses == ()
    assert report.classical == report.rhymed == 0.0


def test_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fables.txt"
    file.write_text(TEXT, encoding="utf-8")
    assert main([str(file), "--faults"]) == 0
    shown = capsys.readouterr().out
    assert "METRE RHYME" in shown
    assert "6 verses: 83.3% in a classical metre (66.7% in one that a neighbour shares), 66.7% rhymed" in shown


@given(st.text())
def test_any_text_is_counted(text: str) -> None:
    assert all(count >= 0 for count in syllable_counts(text))
    report = analyse(text)
    assert 0.0 <= report.classical <= 1.0
    assert 0.0 <= report.rhymed <= 1.0
    assert not rhymes(text, text)


@given(st.text(alphabet="abcdeéèghilmnoqrstuvyœ' -,", max_size=60), st.sampled_from([".", ",", " !", "...", " »"]))
def test_last_stop_changes_nothing(line: str, stop: str) -> None:
    assert syllable_counts(line + stop) == syllable_counts(line)
    assert metre(line + stop) == metre(line)
    assert rhyme(line + stop) == rhyme(line)


@pytest.mark.skipif(not FABLES.exists(), reason="the shared texts are not here")
def test_la_fontaine() -> None:
    report = analyse(FABLES.read_text(encoding="utf-8"))
    assert report.classical > 0.95
    assert report.rhymed > 0.95
