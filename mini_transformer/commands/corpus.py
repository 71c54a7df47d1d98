"""`corpus`: read the fables that come with the package."""

import difflib
from collections.abc import Sequence

from mini_transformer.cli import Parser
from mini_transformer.errors import UserError
from mini_transformer.text.fables import find_fables, join_fables, load_fables


def main(argv: Sequence[str]) -> int:
    """List the fables, print one, or print them as a text to train on."""
    parser = Parser(prog="corpus", description="The fables that come with the package (CC0): list them or read them.")
    parser.add_argument("title", nargs="?", metavar="WORDS", help="print the fables with these words in their title")
    parser.add_argument("--split", choices=("train", "validation", "all"), help="print all fables of a part, as a file")
    given = parser.parse(argv)
    fables = load_fables()
    if given.split:
        chosen = [f for f in fables if given.split == "all" or f.validation == (given.split == "validation")]
        print(join_fables(chosen), end="")
    elif given.title:
        found = find_fables(fables, given.title)
        if not found:
            near = difflib.get_close_matches(given.title.upper(), [fable.title for fable in fables], n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{given.title!r}: no fable with these words{hint} (without words, all are listed)")
        print(join_fables(found), end="")
    else:
        for fable in fables:
            print(f"{fable.title}  ({fable.form}{'; validation' if fable.validation else ''})")
        print(f"\n{len(fables)} fables. mini-transformer corpus WORDS prints those with the words in their title.")
    return 0
