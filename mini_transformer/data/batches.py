"""What the trainer is fed: endless streams of tokens, cut into batches; and the stream that is measured.

A stream is `<|endoftext|> d1 <|endoftext|> d2 <|endoftext|> ...`. Axes: B batch (blocks), T tokens (block size).
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mini_transformer.data.tokens import DocumentStream, TokenDocuments
from mini_transformer.errors import UserError
from mini_transformer.text.tokenizer import Tokens

Batch = tuple[Tensor, Tensor]
CYCLE = 1000  # rows in which the shares of a mixture come out exactly


class Feed(Protocol):
    """What gives batches by their number."""

    epoch_tokens: int

    def batch(self, number: int, batch_size: int, block_size: int, rank: int = 0, ranks: int = 1) -> Batch:
        """Inputs and targets (B, T) of one batch; the targets are the inputs' next tokens.

        With `ranks` processes, each gets its own rows of the batch, the same whatever their number.
        """


def rows_of(rank: int, ranks: int, batch_size: int) -> range:
    """The rows of each batch that are a process's."""
    return range(batch_size * rank // ranks, batch_size * (rank + 1) // ranks)


class TrainingStream:
    """Batches of documents that are shuffled anew for each epoch and follow each other without padding.

    An epoch shows each token once. What a batch holds is a pure function of the documents, the seed and the batch's
    number, so there is no state to save.
    """

    def __init__(self, documents: Sequence[Tokens], eot_id: int, seed: int, *more_seeds: int) -> None:
        if not isinstance(documents, TokenDocuments):
            documents = TokenDocuments.from_list(documents)
        self.documents = documents
        self.eot_id = eot_id
        self.seed = (seed, *more_seeds)
        self.epoch_tokens = int(documents.lengths.sum()) + len(documents)
        self._epoch = -1
        self._stream = DocumentStream(documents, eot_id, np.empty(0, dtype=np.int64))

    def read(self, start: int, length: int) -> Tokens:
        """Tokens `start` to `start + length` of the endless stream; each epoch begins with an end token."""
        parts = []
        while length > 0:
            epoch, offset = divmod(start, self.epoch_tokens)
            if epoch != self._epoch:
                order = np.random.default_rng([self.seed[0], epoch, *self.seed[1:]]).permutation(len(self.documents))
                self._stream, self._epoch = DocumentStream(self.documents, self.eot_id, order), epoch
            # the end token behind the last document is the one before the next epoch's first
            parts.append(self._stream.read(offset, min(offset + length, self.epoch_tokens)))
            start += len(parts[-1])
            length -= len(parts[-1])
        return np.concatenate(parts)

    def batch(self, number: int, batch_size: int, block_size: int, rank: int = 0, ranks: int = 1) -> Batch:
        """See `Feed`."""
        rows = rows_of(rank, ranks, batch_size)
        start = (number * batch_size + rows.start) * block_size
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

    def batch(self, number: int, batch_size: int, block_size: int, rank: int = 0, ranks: int = 1) -> Batch:
        """See `Feed`."""
        rows = rows_of(rank, ranks, batch_size)
        blocks = np.empty((len(rows), block_size + 1), dtype=np.int64)
        for block, row in zip(blocks, rows, strict=True):
            chosen, there = self.place(number * batch_size + row)
            block[:] = self.streams[chosen].read(there * block_size, block_size + 1)
        tokens = torch.from_numpy(blocks)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


class Prefetched:
    """The same batches, the next one always being made on a thread beside the training."""

    def __init__(self, feed: Feed) -> None:
        self.feed, self.epoch_tokens = feed, feed.epoch_tokens
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._next: tuple[tuple[int, ...], Future[Batch]] | None = None

    def batch(self, number: int, batch_size: int, block_size: int, rank: int = 0, ranks: int = 1) -> Batch:
        """See `Feed`."""
        asked = (number, batch_size, block_size, rank, ranks)
        if self._next is not None and self._next[0] == asked:
            made = self._next[1].result()
        else:
            made = self._thread.submit(self.feed.batch, *asked).result()
        coming = (number + 1, *asked[1:])
        self._next = coming, self._thread.submit(self.feed.batch, *coming)
        return made


def validation_batches(
    stream: Tokens | DocumentStream, batch_size: int, block_size: int, most: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets (up to B, T) that go through a stream once, at most `most` batches of them.

    Each token after the first is predicted once; what remains of the last block comes as one shorter row.
    """
    whole = (len(stream) - 1) // block_size

    def read(start: int, end: int) -> Tensor:
        part = stream.read(start, end) if isinstance(stream, DocumentStream) else stream[start:end]
        return torch.from_numpy(part.astype(np.int64))

    count = 0
    for first in range(0, whole, batch_size):
        if count == most:
            return
        count += 1
        rows = min(batch_size, whole - first)
        tokens = read(first * block_size, (first + rows) * block_size + 1)
        yield tokens[:-1].view(rows, block_size), tokens[1:].view(rows, block_size)
    if count < most and (rest := read(whole * block_size, len(stream))).numel() > 1:
        yield rest[None, :-1], rest[None, 1:]
