"""What the trainer is fed: one endless stream of tokens, cut into batches; and the stream that is measured.

A stream is `<|endoftext|> d1 <|endoftext|> d2 <|endoftext|> ...`. Axes: B batch (blocks), T tokens (block size).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mini_transformer.text.tokenizer import Tokens


def join_documents(documents: Sequence[Tokens], end_id: int) -> Tokens:
    """The stream of some documents, an end token before, between and behind them."""
    end = np.array([end_id], dtype=np.uint32)
    return np.concatenate([end] + [part for document in documents for part in (document, end)])


class TrainingStream:
    """Batches of documents that are shuffled anew for each epoch and follow each other without padding.

    An epoch shows each token once. What a batch holds is a pure function of the documents, the seed and the batch's
    number, so there is no state to save.
    """

    def __init__(self, documents: Sequence[Tokens], end_id: int, seed: int) -> None:
        self.documents = documents
        self.end_id = end_id
        self.seed = seed
        self.epoch_tokens = sum(len(document) + 1 for document in documents)
        self._epoch = -1
        self._tokens: Tokens = np.empty(0, dtype=np.uint32)

    def _read(self, start: int, length: int) -> Tokens:
        """Tokens `start` to `start + length` of the endless stream; each epoch begins with an end token."""
        parts = []
        while length > 0:
            epoch, offset = divmod(start, self.epoch_tokens)
            if epoch != self._epoch:
                order = np.random.default_rng([self.seed, epoch]).permutation(len(self.documents))
                # the end token behind the last document is the one before the next epoch's first
                self._tokens = join_documents([self.documents[i] for i in order], self.end_id)[:-1]
                self._epoch = epoch
            parts.append(self._tokens[offset : offset + length])
            start += len(parts[-1])
            length -= len(parts[-1])
        return np.concatenate(parts)

    def batch(self, number: int, batch_size: int, block_size: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) of one batch; the targets are the inputs' next tokens."""
        count = batch_size * block_size
        tokens = torch.from_numpy(self._read(number * count, count + 1).astype(np.int64))
        return tokens[:-1].view(batch_size, block_size), tokens[1:].view(batch_size, block_size)


def validation_batches(stream: Tokens, batch_size: int, block_size: int, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets (up to B, T) that go through a stream once, at most `most` batches of them.

    Each token after the first is predicted once; what remains of the last block comes as one shorter row.
    """
    tokens = torch.from_numpy(stream.astype(np.int64))
    whole = (len(tokens) - 1) // block_size
    inputs = tokens[: whole * block_size].view(whole, block_size)
    targets = tokens[1 : whole * block_size + 1].view(whole, block_size)
    count = 0
    for start in range(0, whole, batch_size):
        if count == most:
            return
        count += 1
        yield inputs[start : start + batch_size], targets[start : start + batch_size]
    if count < most and (rest := tokens[whole * block_size :]).numel() > 1:
        yield rest[None, :-1], rest[None, 1:]
