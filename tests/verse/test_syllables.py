"""The syllable count of one line."""

import pytest

from mini_transformer.verse.syllables import syllable_counts

COUNTED = [
    # Mute e: counted before a consonant, not before a vowel or a mute h, nor at the end of the verse.
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
    # Usage varies.
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
