"""Documents as tokens, and the streams that they make: the endless one of training batches, and that of validation.

A stream is `<|endoftext|> d1 <|endoftext|> d2 <|endoftext|> ...`. What a batch holds is a pure function of (data, seed,
step, rank), so there is no state to save. Axes: B batch (blocks), T tokens (block size).
"""

import mmap
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mini_transformer.errors import UserError
from mini_transformer.text.char import Tokens

Batch = tuple[Tensor, Tensor]
Integers = NDArray[np.int64]
RELEASE = 1 << 25  # tokens read, after which the pages of mapped files are given back to the system
CYCLE = 1000  # rows in which the shares of a mixture come out exactly


class TokenDocuments(Sequence[Tokens]):
    """Documents that are parts of long arrays of tokens, in memory or in mapped files.

    `table` has a row for each: number of its array, first token, tokens, and of its text characters and hash.
    """

    def __init__(self, arrays: Sequence[Tokens], table: Integers, maps: Sequence[mmap.mmap] = ()) -> None:
        self.arrays, self.table, self.maps = arrays, table, maps
        self.lengths, self.hashes = table[:, 2], table[:, 4]
        self._read = 0

    @classmethod
    def of(cls, array: Tokens, rows: Integers, maps: Sequence[mmap.mmap] = ()) -> "TokenDocuments":
        """Documents that fill an array, one after the other; `rows`: tokens, characters, hash."""
        starts = np.cumsum(rows[:, 0]) - rows[:, 0]
        return cls([array], np.column_stack([np.zeros_like(starts), starts, rows[:, :3]]), maps)

    @classmethod
    def joined(cls, parts: Sequence["TokenDocuments"]) -> "TokenDocuments":
        """All documents of several."""
        arrays, tables = list[Tokens](), []
        for part in parts:
            tables.append(part.table + np.array([len(arrays), 0, 0, 0, 0]))
            arrays += part.arrays
        return cls(arrays, np.concatenate(tables), [mapped for part in parts for mapped in part.maps])

    def take(self, chosen: NDArray[np.bool]) -> "TokenDocuments":
        """The documents that are marked."""
        return TokenDocuments(self.arrays, self.table[chosen], self.maps)

    @property
    def characters(self) -> int:
        """Of a file of the documents: two blank lines between them, and a line feed at the end."""
        return int(self.table[:, 3].sum()) + max(0, 3 * len(self) - 2)

    def ids(self, vocab_size: int) -> list[int]:
        """The token ids that occur in the documents."""
        seen = np.zeros(vocab_size, dtype=bool)
        for document in self:
            seen[document] = True
            self.release(len(document))
        return np.flatnonzero(seen).tolist()

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> Tokens:  # type: ignore[override]  # slices are `take`'s
        number, start, length = self.table[i, :3].tolist()
        return self.arrays[number][start : start + length]

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
        self.dtype = np.result_type(*(array.dtype for array in documents.arrays))

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


class BatchSource(Protocol):
    """What gives batches by their number."""

    epoch_tokens: int

    def batch(self, step: int, batch_size: int, block_size: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Inputs and targets (B, T), int64, of one step; the targets are the inputs' next tokens.

        Of several processes, each gets its own rows of the batch, which is the same whatever their number.
        """


def rows_of(rank: int, world_size: int, batch_size: int) -> range:
    """The rows of each batch that belong to a process."""
    return range(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)


class TrainingStream:
    """Batches of documents that are shuffled anew for each epoch and follow each other without padding.

    An epoch shows each token once.
    """

    def __init__(self, documents: TokenDocuments, eot_id: int, seed: int, *more_seeds: int) -> None:
        self.documents, self.eot_id = documents, eot_id
        self.seed = (seed, *more_seeds)
        self.epoch_tokens = int(documents.lengths.sum()) + len(documents)
        self._epoch = -1
        self._stream = TokenStream(documents, eot_id, np.empty(0, dtype=np.int64))

    def read(self, start: int, length: int) -> Tokens:
        """Tokens `start` to `start + length` of the endless stream; each epoch begins with <|endoftext|>."""
        parts = []
        while length > 0:
            epoch, offset = divmod(start, self.epoch_tokens)
            if epoch != self._epoch:
                order = np.random.default_rng([self.seed[0], epoch, *self.seed[1:]]).permutation(len(self.documents))
                self._stream, self._epoch = TokenStream(self.documents, self.eot_id, order), epoch
            # the <|endoftext|> after the last document is the one before the next epoch's first
            parts.append(self._stream.read(offset, min(offset + length, self.epoch_tokens)))
            start += len(parts[-1])
            length -= len(parts[-1])
        return np.concatenate(parts)

    def batch(self, step: int, batch_size: int, block_size: int, rank: int = 0, world_size: int = 1) -> Batch:
        """See `BatchSource`."""
        rows = rows_of(rank, world_size, batch_size)
        start = (step * batch_size + rows.start) * block_size
        tokens = torch.from_numpy(self.read(start, len(rows) * block_size + 1).astype(np.int64))
        return tokens[:-1].view(len(rows), block_size), tokens[1:].view(len(rows), block_size)


class Mixture:
    """Rows of several streams in fixed shares, evenly interleaved; each stream goes through its own epochs.

    An epoch of the mixture is as many tokens as all have. Raises `UserError` for a share that is too small to be had.
    Which stream a row comes from, and which row of that stream it is, follow from the row's number alone.
    """

    def __init__(self, streams: Sequence[TrainingStream], weights: Sequence[float]) -> None:
        self.streams = streams
        self.epoch_tokens = sum(stream.epoch_tokens for stream in streams)
        shares = np.array(weights) / sum(weights)
        given = np.zeros(len(shares))
        self._plan = []  # of each row of a cycle: the stream
        for row in range(CYCLE):
            chosen = int(np.argmax(shares * (row + 1) - given))
            given[chosen] += 1
            self._plan.append(chosen)
        marks = np.eye(len(shares), dtype=np.int64)[self._plan]
        self._before = np.cumsum(marks, axis=0) - marks  # rows of each stream before each row of a cycle
        self._per_cycle = marks.sum(axis=0)
        if not self._per_cycle.all():
            raise UserError(
                f"a source has too small a weight: less than one row in {CYCLE:,} of the batches; "
                "give it more, or leave it out"
            )

    def place(self, row: int) -> tuple[int, int]:
        """The stream of a row, and which row of that stream it is."""
        cycle, within = divmod(row, CYCLE)
        chosen = self._plan[within]
        return chosen, int(cycle * self._per_cycle[chosen] + self._before[within, chosen])

    def batch(self, step: int, batch_size: int, block_size: int, rank: int = 0, world_size: int = 1) -> Batch:
        """See `BatchSource`."""
        rows = rows_of(rank, world_size, batch_size)
        blocks = np.empty((len(rows), block_size + 1), dtype=np.int64)
        for block, row in zip(blocks, rows, strict=True):
            chosen, there = self.place(step * batch_size + row)
            block[:] = self.streams[chosen].read(there * block_size, block_size + 1)
        tokens = torch.from_numpy(blocks)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def validation_batches(
    stream: TokenStream, batch_size: int, block_size: int, max_batches: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Inputs and targets (up to B, T) that go through a stream once, at most `max_batches` of them, and True.

    Each token after the first is predicted once; what remains after the last whole block comes as one shorter row.
    The processes take turns; those that get one less than others get the first batch again at the end, with False.
    """
    whole, rest = divmod(len(stream) - 1, block_size)
    starts = [*range(0, whole, batch_size), *[whole] * (rest > 0)][:max_batches]
    for i in range(rank, -(-len(starts) // world_size) * world_size, world_size):
        start = starts[i] if i < len(starts) else 0
        rows = min(batch_size, whole - start) or 1
        tokens = torch.from_numpy(stream.read(start * block_size, (start + rows) * block_size + 1).astype(np.int64))
        yield tokens[:-1].view(rows, -1), tokens[1:].view(rows, -1), i < len(starts)
