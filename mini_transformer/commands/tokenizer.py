"""`tokenizer`: make one alone, or look at one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mini_transformer.cli import Parser
from mini_transformer.config import TextConfig, check_text, option_help
from mini_transformer.errors import UserError

if TYPE_CHECKING:
    from mini_transformer.text.tokenizer import Tokenizer


def main(argv: Sequence[str]) -> int:
    """Train a tokenizer into a folder, or show what one does with a text."""
    parser = Parser(
        prog="tokenizer",
        description="Train a tokenizer on texts into a folder (--out-dir), or show what one makes of a text: "
        "vocabulary, characters per token, longest tokens, and whether the text comes back unchanged.",
    )
    add = parser.add_argument
    add("--data", type=Path, nargs="+", metavar="FILE", help="texts to learn from, or to show")
    add("--tokenizer", default="bpe", metavar="KIND", help=option_help(TextConfig, "tokenizer"))
    add("--vocab-size", type=int, default=0, metavar="N", help=option_help(TextConfig, "vocab_size"))
    add("--encoding", default="utf-8", help="encoding of the text files")
    add("--out-dir", type=Path, metavar="DIR", help="where the tokenizer goes")
    add("--longest", type=int, default=10, metavar="N", help="longest tokens to show")
    given = parser.parse(argv)
    settings = TextConfig(tokenizer=given.tokenizer, vocab_size=given.vocab_size)
    check_text(settings)
    trained = given.tokenizer in ("char", "bpe")
    if trained and not given.data:
        raise UserError("--data: missing; say which text to learn from, or --tokenizer FOLDER to show a ready one")
    from mini_transformer.data.sources import read_documents
    from mini_transformer.text.make import make_tokenizer, write_tokenizer

    documents = read_documents(tuple(given.data), given.encoding) if given.data else []
    tokenizer = make_tokenizer(settings, documents)
    if given.out_dir is not None:
        write_tokenizer(tokenizer, given.out_dir)
        print(f"The tokenizer is in {given.out_dir}: train with --tokenizer {given.out_dir}")
    _show(tokenizer, documents, given.longest)
    return 0


def _show(tokenizer: "Tokenizer", documents: list[str], longest: int) -> None:
    kind = "characters" if tokenizer.is_character_level else "byte-level BPE"
    print(f"Vocabulary: {tokenizer.vocab_size:,} tokens ({kind})")
    pieces = {piece: None for i in range(tokenizer.vocab_size) if (piece := tokenizer.decode([i]))}
    ordered = sorted(pieces, key=len, reverse=True)
    print(f"Longest tokens: {' '.join(repr(piece) for piece in ordered[:longest])}")
    if not documents:
        return
    tokens = characters = 0
    for document in documents:
        ids = tokenizer.encode(document)
        tokens, characters = tokens + len(ids), characters + len(document)
        if tokenizer.decode(ids.tolist()) != document:
            raise UserError(f"--tokenizer: the document that begins {document[:40]!r} does not come back unchanged")
    print(f"Characters per token: {characters / tokens:.3f} ({characters:,} characters, {tokens:,} tokens)")
    print(f"Round trip: all {len(documents):,} documents come back unchanged")
