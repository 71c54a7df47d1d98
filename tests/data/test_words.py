from mini_transformer.data.words import all_word_runs, shared_run, word_runs, words

VERSES = "Maître Corbeau, sur un arbre perché,\n    Tenait en son bec un fromage."


def test_words_are_letters_in_lower_case() -> None:
    assert words("L'Été, à 3 heures : CŒUR d’or—Ça !") == ["l", "été", "à", "heures", "cœur", "d", "or", "ça"]
    assert words("e\u0301te\u0301") == ["été"]


def test_a_quotation_is_found_whatever_its_layout() -> None:
    runs = all_word_runs([VERSES, "autre chose"])
    quoting = "Il dit : « Maître corbeau sur un arbre\nperché tenait en main » et se tut"
    assert shared_run(quoting, runs) == "maître corbeau sur un arbre perché tenait en"
    assert shared_run("maître corbeau sur un arbre perché tenait bon", runs) is None  # seven words
    assert shared_run("Sur un arbre perché tenait en son bec, un jour", runs) == "sur un arbre perché tenait en son bec"


def test_no_run_reaches_into_the_next_text() -> None:
    assert all_word_runs(["a b c d", "e f g h"]) == set()
    assert word_runs("a b c d e f g h i") == {"a b c d e f g h", "b c d e f g h i"}
    assert word_runs("a b c", length=2) == {"a b", "b c"}
