"""The fast path of the character tokenizer: encoding by table look-up, tested equal to the library's."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.unsignedinteger]  # uint16 if the vocabulary fits, else uint32

CODE_POINTS = 0x110000
CHUNK = 1 << 16  # characters that are looked up at once: what stays in a core's cache


def distinct_characters(texts: Iterable[str]) -> str:
    """The distinct characters of some texts, sorted. The texts must hold no lone surrogate."""
    seen = np.zeros(CODE_POINTS, dtype=bool)
    for text in texts:
        for start in range(0, len(text), CHUNK):
            seen[np.frombuffer(text[start : start + CHUNK].encode("utf-32-le"), dtype=np.uint32)] = True
    return "".join(map(chr, np.flatnonzero(seen).tolist()))


def character_ids(tokens: Sequence[bytes]) -> dict[int, int] | None:
    """The token id of each code point, given the bytes of each token; None if a token has more than one character."""
    ids = {}
    for i, token in enumerate(tokens):
        try:
            text = token.decode("utf-8")
        except UnicodeDecodeError as error:
            # a part of a character is fine: one byte, or the beginning of a longer sequence
            if len(token) > 1 and not (error.start == 0 and "unexpected end" in error.reason):
                return None
            continue
        if len(text) > 1:
            return None
        if text:
            ids[ord(text)] = i
    return ids


class CharacterTable:
    """Encoding by table look-up: the merges of a character tokenizer never cross from one character to the next."""

    def __init__(
        self, ids: dict[int, int], dtype: type[np.unsignedinteger], fallback: Callable[[str], list[int]]
    ) -> None:
        """`ids`: of the known code points, below the largest of `dtype`. `fallback`: the ids of any other character."""
        self._unknown, self._fallback = np.iinfo(dtype).max, cache(fallback)
        self._table = np.full(CODE_POINTS, self._unknown, dtype=dtype)
        self._table[list(ids)] = list(ids.values())

    def encode(self, text: str) -> Tokens:
        """The token ids (T,) of a text. Raises `UnicodeEncodeError` for a lone surrogate."""
        parts = [self._table[:0]]
        for start in range(0, len(text), CHUNK):
            chunk = text[start : start + CHUNK]
            points = np.frombuffer(chunk.encode("utf-32-le"), dtype=np.uint32)
            ids = np.take(self._table, points, mode="clip")  # no code point is outside: clip is merely faster
            parts.append(self._fill_in(chunk, ids) if ids.max() == self._unknown else ids)
        return np.concatenate(parts)

    def _fill_in(self, text: str, ids: Tokens) -> Tokens:
        """The token ids of a chunk, with those of the fallback in place of unknown characters."""
        unknown = ids == self._unknown
        pieces = [self._fallback(text[i]) for i in np.flatnonzero(unknown)]
        lengths = np.ones(len(ids), dtype=np.int64)
        lengths[unknown] = [len(piece) for piece in pieces]
        out = np.repeat(ids, lengths)
        out[np.repeat(unknown, lengths)] = [i for piece in pieces for i in piece]
        return out
