"""The fables that come with the package: original, in French verse, written for this project, CC0.

`corpus/fables.txt` is the text, `corpus/fables.tsv` tells of each its protagonists, form and moral,
`corpus/validation.txt` lists the tenth of them that is kept for validation, for ever the same.
"""

import unicodedata
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Fable:
    """One fable: `text` begins with its title, as it stands in the corpus."""

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
    about = {title: rest for title, *rest in (line.split("\t") for line in _read("fables.tsv").splitlines())}
    validation = set(_read("validation.txt").splitlines())
    fables = []
    for text in _read("fables.txt").strip("\n").split("\n\n\n"):
        title = text.split("\n")[0]
        protagonists, form, moral = about[title]
        fables.append(Fable(title, text, tuple(protagonists.split(", ")), form, moral, title in validation))
    return fables


def join_fables(fables: list[Fable]) -> str:
    """Fables as the text of one file, two blank lines between them."""
    return "\n\n\n".join(fable.text for fable in fables) + "\n"


def find_fables(fables: list[Fable], words: str) -> list[Fable]:
    """The fables whose title, or else whose protagonists, hold some words; case and accents do not matter."""

    def plain(text: str) -> str:
        parts = unicodedata.normalize("NFD", text.lower().replace("œ", "oe"))
        return "".join(c for c in parts if not unicodedata.combining(c))

    wanted = plain(words)
    titled = [fable for fable in fables if wanted in plain(fable.title)]
    return titled or [fable for fable in fables if wanted in plain(" ".join(fable.protagonists))]
