"""Documents as tokens, in memory or in a mapped file, and the stream that they make one after the other."""

import mmap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mini_transformer.text.tokenizer import Tokens

Integers = NDArray[np.int64]
RELEASE = 1 << 25  # tokens read, after which the pages of mapped files are given back to the system


class TokenDocuments(Sequence[Tokens]):
    """Documents that are parts of long arrays of tokens."""

    def __init__(
        self,
        buffers: Sequence[Tokens],
        which: Integers,
        starts: Integers,
        lengths: Integers,
        maps: Sequence[mmap.mmap] = (),
    ) -> None:
        """Document i is `lengths[i]` tokens of buffer `which[i]`, from `starts[i]` on. `maps`: the buffers' files."""
        self.buffers, self.which, self.starts, self.lengths, self.maps = buffers, which, starts, lengths, maps
        self._read = 0

    @classmethod
    def of(cls, buffer: Tokens, lengths: Integers, maps: Sequence[mmap.mmap] = ()) -> "TokenDocuments":
        """Documents that fill an array, one after the other."""
        return cls([buffer], np.zeros_like(lengths), np.cumsum(lengths) - lengths, lengths, maps)

    @classmethod
    def joined(cls, parts: Sequence["TokenDocuments"]) -> "TokenDocuments":
        """All documents of several."""
        before = np.cumsum([0, *(len(part.buffers) for part in parts)])
        return cls(
            [buffer for part in parts for buffer in part.buffers],
            np.concatenate([part.which + first for part, first in zip(parts, before[:-1], strict=True)]),
            np.concatenate([part.starts for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            [mapped for part in parts for mapped in part.maps],
        )

    def take(self, chosen: NDArray[np.bool]) -> "TokenDocuments":
        """The documents that are marked."""
        columns = (self.which[chosen], self.starts[chosen], self.lengths[chosen])
        return TokenDocuments(self.buffers, *columns, self.maps)

    def ids(self, vocab_size: int) -> list[int]:
        """The token ids that occur in the documents."""
        seen = np.zeros(vocab_size, dtype=bool)
        for document in self:
            seen[document] = True
            self.release(len(document))
        return np.flatnonzero(seen).tolist()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Tokens:  # type: ignore[override]  # slices are `take`'s
        start, length = int(self.starts[i]), int(self.lengths[i])
        return self.buffers[int(self.which[i])][start : start + length]

    def release(self, tokens: int) -> None:
        """Note that so many tokens were read: now and then the pages are released, which stay in the system's cache."""
        self._read += tokens
        if self._read >= RELEASE:
            self._read = 0
            for mapped in self.maps:
                if hasattr(mapped, "madvise"):
                    mapped.madvise(mmap.MADV_DONTNEED)


class TokenStream:
    """`<|endoftext|> d1 <|endoftext|> d2 <|endoftext|> ...` of documents in an order; it ends with <|endoftext|>."""

    def __init__(self, documents: TokenDocuments, eot_id: int, order: Integers | None = None) -> None:
        self.documents, self.eot_id = documents, eot_id
        self.order = np.arange(len(documents)) if order is None else order
        self._ends = np.cumsum(documents.lengths[self.order] + 1)  # after each document
        self.dtype = np.result_type(*(buffer.dtype for buffer in documents.buffers))

    def __len__(self) -> int:
        return int(self._ends[-1]) + 1 if len(self._ends) else 1

    def read(self, start: int, end: int) -> Tokens:
        """Tokens `start` to `end`, less those after the stream's end."""
        out = np.full(max(0, min(end, len(self)) - start), self.eot_id, dtype=self.dtype)
        i, done = int(np.searchsorted(self._ends, start, side="right")), 0
        while done < len(out) and i < len(self.order):
            document = self.documents[int(self.order[i])]
            offset = start + done - (int(self._ends[i]) - len(document) - 1)  # 0 is the <|endoftext|> before it
            done += offset == 0
            part = document[max(offset - 1, 0) :][: len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
            i += 1
        self.documents.release(len(out))
        return out
