"""`tokenizer`: make one alone, or look at one."""

import sys
from collections.abc import Iterable, Iterator, Sequence

from mini_transformer.cli import Parser, add_fields, path
from mini_transformer.config import TRAINABLE_TOKENIZERS, RunConfig, TextConfig, check_text
from mini_transformer.errors import UserError
from mini_transformer.settings import fill
from mini_transformer.text.documents import Piece
from mini_transformer.text.pretrained import make_tokenizer
from mini_transformer.text.tokenizer import Tokenizer


def main(argv: Sequence[str]) -> int:
    """Train a tokenizer into a folder, or show what one does with a text."""
    shown = "vocabulary, characters per token, longest tokens, and whether the text comes back unchanged"
    about = f"Train a tokenizer on texts into a folder (--out-dir), or show what one makes of a text: {shown}."
    parser = Parser(prog="tokenizer", description=about)
    add = parser.add_argument
    add("--data", type=path, nargs="+", action="extend", metavar="FILE", help="texts to learn from, or to show")
    add("--out-dir", type=path, metavar="DIR", help="folder that the tokenizer is written to (default: none)")
    add_fields(parser, TextConfig, ["tokenizer", "vocab_size", "text_field"], tokenizer="bpe")
    add_fields(parser, RunConfig, ["encoding"])
    add("--longest", type=int, default=10, metavar="N", help="number of longest tokens to show (default: 10)")
    given = parser.parse(argv)
    settings, encoding = fill(TextConfig, vars(given)), fill(RunConfig, vars(given)).encoding
    check_text(settings)
    if settings.tokenizer in TRAINABLE_TOKENIZERS and not given.data:
        raise UserError("`data`: missing; say which text to learn from, or `tokenizer` FOLDER to show a ready one")
    from mini_transformer.data.reading import ReaderConfig
    from mini_transformer.data.sources import Sources, nothing_to_learn

    reader = ReaderConfig(encoding, settings.text_field)

    def pieces() -> Iterator[Piece]:
        return Sources(given.data or (), reader).stream()

    if given.data and next(pieces(), None) is None:
        raise nothing_to_learn(given.data)
    texts = (piece.text for piece in pieces())
    made = make_tokenizer(settings.tokenizer, settings.vocab_size, texts, progress=sys.stderr.isatty())
    if given.out_dir is not None:
        if (given.out_dir / "run.json").exists():
            what = "a run, whose tokenizer belongs to its model"
            raise UserError(f"`out_dir`: {given.out_dir} holds {what}; take another folder")
        try:
            made.save(given.out_dir)
        except OSError as error:
            raise UserError(f"`out_dir`: {given.out_dir} cannot be written ({error.strerror})") from None
        # a folder of the name of a kind must not be taken for the kind
        where = f"./{given.out_dir}" if str(given.out_dir).lower() in TRAINABLE_TOKENIZERS else given.out_dir
        print(f"The tokenizer is in {given.out_dir}: train with --tokenizer {where}")
    _show(made, pieces(), given.longest)
    return 0


def _show(tokenizer: Tokenizer, pieces: Iterable[Piece], longest: int) -> None:
    kind = "characters" if tokenizer.is_character_level else "byte-level BPE"
    print(f"Vocabulary: {tokenizer.vocab_size:,} tokens ({kind})")
    words = {word: None for i in range(tokenizer.vocab_size) if (word := tokenizer.decode([i]))}
    ordered = sorted(words, key=len, reverse=True)
    print(f"Longest tokens: {' '.join(map(repr, ordered[:longest]))}")
    documents = tokens = characters = 0
    for piece in pieces:
        ids = tokenizer.encode(piece.text)
        tokens, characters, documents = tokens + len(ids), characters + len(piece.text), documents + piece.last
    if documents:
        print(f"Characters per token: {characters / tokens:.3f} ({characters:,} characters, {tokens:,} tokens)")
        print(f"Round trip: all {documents:,} documents come back unchanged")
