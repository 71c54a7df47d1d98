"""Text to documents, and long documents to pieces, in bounded memory.

Documents are separated by two or more blank lines. A long one is cut into pieces between a word and the space before
the next, where the pre-tokenizer of every GPT-like tokenizer splits anyway. Where it is cut depends on the text alone.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

DOCUMENT_SEPARATOR = "\n\n\n"  # what we write between documents: two blank lines
MIN_PIECE = 1 << 18  # characters of a piece, after which it ends at the next space between words
MAX_PIECE = 1 << 22  # where there is no such space, it ends here
_GAP = re.compile(r"\n(?:[ \t]*\n){2,}")
_WORD_BREAK = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")
_VISIBLE = re.compile(r"\S")
_NOT_BLANK = re.compile(r"[^ \t]")


class Piece(NamedTuple):
    """A document, or a part of one."""

    text: str
    last: bool  # the last piece of its document
    origin: str  # the name of the file that it comes from


def split_documents(text: str) -> list[str]:
    """Split a text at two or more blank lines (spaces alone count as blank), and drop line feeds at both ends."""
    parts = (part.strip("\n") for part in _GAP.split(text))
    return [part for part in parts if part.strip()]


def _piece_end(text: str, start: int, min_piece: int, max_piece: int) -> int:
    """Where the piece of a document ends that begins at `start`; 0 if the text so far does not tell."""
    if word_break := _WORD_BREAK.search(text, start + min_piece, start + max_piece):
        return word_break.start()
    # the next piece must not begin with a line feed, which would be dropped if nothing else came after it
    visible = _VISIBLE.search(text, start + max_piece)
    return visible.start() if visible else 0


def cut_document(text: str, origin: str, min_piece: int = MIN_PIECE, max_piece: int = MAX_PIECE) -> Iterator[Piece]:
    """The pieces of one document, of `min_piece` characters or somewhat more; the last one may be shorter."""
    start = 0
    while end := _piece_end(text, start, min_piece, max_piece):
        yield Piece(text[start:end], False, origin)
        start = end
    yield Piece(text[start:], True, origin)


def stream_documents(
    chunks: Iterable[str], origin: str, min_piece: int = MIN_PIECE, max_piece: int = MAX_PIECE
) -> Iterator[Piece]:
    """The pieces of all documents of a text that comes in chunks: those of `split_documents`, wherever chunks end.

    A chunk is searched once or twice, however long its run of blank lines or spaces is.
    """
    text, begun = "", False  # what is left to yield; whether a piece of its first document was yielded
    searched = 0  # no gap begins before this position
    for chunk in filter(None, chunks):
        text += chunk  # alone in its line, so that Python need not copy a long text
        start = 0
        while "\n" in chunk and (gap := _GAP.search(text, searched)):
            yield from _finish(text[start : gap.start()], begun, origin, min_piece, max_piece)
            start = searched = gap.end()
            begun = False
        if start and not _NOT_BLANK.search(text, start):
            # the gap may go on in the next chunk: the shortest possible gap is kept in its place
            text, searched = DOCUMENT_SEPARATOR + text[start:], 0
            continue
        while len(text) - start > min_piece and not chunk.isspace():
            if not begun:
                start = len(text) - len(text[start:].lstrip("\n"))
            if not (end := _piece_end(text, start, min_piece, max_piece)):
                break
            yield Piece(text[start:end], False, origin)
            start, begun = end, True
        text = text[start:]
        if visible := chunk.rstrip(" \t\n"):
            searched = len(text) - len(chunk) + len(visible)
        searched = text.find("\n", searched)
        searched = len(text) if searched < 0 else searched
    yield from _finish(text, begun, origin, min_piece, max_piece)


def _finish(text: str, begun: bool, origin: str, min_piece: int, max_piece: int) -> Iterator[Piece]:
    """The last pieces of a document that is complete."""
    text = text.rstrip("\n") if begun else text.strip("\n")
    if begun or text.strip():
        yield from cut_document(text, origin, min_piece, max_piece)
