"""The fables that come with the package: original, in French verse, written for this project, CC0.

`corpus/validation.txt` lists the tenth of them that is always kept for validation.
"""

import unicodedata
from dataclasses import dataclass
from importlib import resources

from mini_transformer.text.documents import DOCUMENT_SEPARATOR


@dataclass(frozen=True)
class Fable:
    """One fable; `text` is all of it, exactly as in the corpus, its title included."""

    title: str
    text: str
    protagonists: tuple[str, ...]
    form: str
    moral: str
    validation: bool


def _read(name: str) -> str:
    return (resources.files("mini_transformer.text") / "corpus" / name).read_text(encoding="utf-8")


def load_fables() -> list[Fable]:
    """All fables, in the order of the corpus."""
    metadata = {title: rest for title, *rest in (line.split("\t") for line in _read("fables.tsv").splitlines())}
    validation = set(_read("validation.txt").splitlines())
    fables = []
    for text in _read("fables.txt").strip("\n").split(DOCUMENT_SEPARATOR):
        title = text.split("\n")[0]
        protagonists, form, moral = metadata[title]
        fables.append(Fable(title, text, tuple(protagonists.split(", ")), form, moral, title in validation))
    return fables


def join_fables(fables: list[Fable]) -> str:
    """Fables as the text of one file, two blank lines between them."""
    return DOCUMENT_SEPARATOR.join(fable.text for fable in fables) + "\n"


def find_fables(fables: list[Fable], words: str) -> list[Fable]:
    """The fables with some words in their title, or else in their protagonists, ignoring case and accents."""

    def plain(text: str) -> str:
        parts = unicodedata.normalize("NFD", text.lower().replace("œ", "oe"))
        return "".join(c for c in parts if not unicodedata.combining(c))

    wanted = plain(words)
    titled = [fable for fable in fables if wanted in plain(fable.title)]
    return titled or [fable for fable in fables if wanted in plain(" ".join(fable.protagonists))]
