"""Texts of any length as a stream of documents, in bounded memory.

A text comes in chunks and leaves in pieces: a document is one piece, or several if it is long. A long one is cut only
between a word and the space before the next, where every GPT-like tokenizer parts text anyway, and by the text alone,
so that the pieces are the same however the text was read.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

DOCUMENT_SEPARATOR = "\n\n\n"  # two blank lines: how documents are separated where we write them
GAP = re.compile(r"\n(?:[ \t]*\n){2,}")
PIECE = 1 << 18  # characters from which a document is cut at the next space
HARD = 1 << 22  # where no space comes, it is cut anyway
_SPACE = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")
_VISIBLE = re.compile(r"\S")
_NO_BLANK = re.compile(r"[^ \t]")


class Piece(NamedTuple):
    """A document, or a part of one; the last part says so."""

    text: str
    last: bool
    origin: str


def split_documents(text: str) -> list[str]:
    """Part a text at two or more blank lines (spaces alone count as blank), less line feeds at both ends."""
    parts = (part.strip("\n") for part in GAP.split(text))
    return [part for part in parts if part.strip()]


def _cut(text: str, start: int, piece: int, hard: int) -> int:
    """Where the piece ends that begins at `start` of a document's text; 0 if it has no end yet."""
    if space := _SPACE.search(text, start + piece, start + hard):
        return space.start()
    # what follows must not begin with a line feed, which would be lost if nothing else came behind it
    visible = _VISIBLE.search(text, start + hard)
    return visible.start() if visible else 0


def cut_document(text: str, origin: str, piece: int = PIECE, hard: int = HARD) -> Iterator[Piece]:
    """The pieces of one document."""
    start = 0
    while at := _cut(text, start, piece, hard):
        yield Piece(text[start:at], False, origin)
        start = at
    yield Piece(text[start:], True, origin)


def stream_documents(chunks: Iterable[str], origin: str, piece: int = PIECE, hard: int = HARD) -> Iterator[Piece]:
    """The pieces of all documents of a text that comes in chunks: those of `split_documents`, wherever chunks end.

    A chunk is looked at once or twice, however long the blank lines or spaces are that it belongs to.
    """
    text, begun = "", False  # what is not given out yet; whether a piece of its first document was
    searched = 0  # no gap begins before this place
    for chunk in filter(None, chunks):
        text += chunk  # alone in its line, so that Python need not copy a long text
        start = 0
        while "\n" in chunk and (gap := GAP.search(text, searched)):
            yield from _finish(text[start : gap.start()], begun, origin, piece, hard)
            start = searched = gap.end()
            begun = False
        if start and not _NO_BLANK.search(text, start):
            # the gap may go on in the next chunk, and the shortest one stands for it till then
            text, searched = "\n\n\n" + text[start:], 0
            continue
        while len(text) - start > piece and not chunk.isspace():
            if not begun:
                start = len(text) - len(text[start:].lstrip("\n"))
            if not (at := _cut(text, start, piece, hard)):
                break
            yield Piece(text[start:at], False, origin)
            start, begun = at, True
        text = text[start:]
        if visible := chunk.rstrip(" \t\n"):
            searched = len(text) - len(chunk) + len(visible)
        searched = text.find("\n", searched)
        searched = len(text) if searched < 0 else searched
    yield from _finish(text, begun, origin, piece, hard)


def _finish(text: str, begun: bool, origin: str, piece: int, hard: int) -> Iterator[Piece]:
    """The last pieces of a document that is complete."""
    text = text.rstrip("\n") if begun else text.strip("\n")
    if begun or text.strip():
        yield from cut_document(text, origin, piece, hard)
