"""Pieces of documents to tokens: in this process, or on all cores in worker processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from mini_transformer.data.documents import Piece
from mini_transformer.errors import UserError
from mini_transformer.text.tokenizer import Tokenizer, Tokens

BATCH = 1 << 20  # characters that one worker takes at once

Encoded = list[tuple[Piece, Tokens]]
_tokenizer: Tokenizer  # of a worker process


def batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Some pieces at a time, about `BATCH` characters."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode(pieces: Iterable[Piece], tokenizer: Tokenizer, workers: int) -> Iterator[Encoded]:
    """The tokens of pieces, batch by batch and in order. Looking up characters is quicker than any worker's mail."""
    if workers == 1 or tokenizer.is_character_level:
        for batch in batches(pieces):
            yield list(zip(batch, tokenizer.encode_batch([piece.text for piece in batch]), strict=True))
        return
    # a fresh start, not a fork: this process may have threads
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (tokenizer.backend.to_str().encode("utf-8"),))
    under_way: deque[tuple[list[Piece], Future[list[Tokens]]]] = deque()
    try:
        for batch in batches(pieces):
            under_way.append((batch, pool.submit(_encode, [piece.text for piece in batch])))
            if len(under_way) > workers + 1:
                done, tokens = under_way.popleft()
                yield list(zip(done, tokens.result(), strict=True))
        while under_way:
            done, tokens = under_way.popleft()
            yield list(zip(done, tokens.result(), strict=True))
    except BrokenProcessPool:
        raise UserError("a process that tokenises was ended from outside (out of memory?); try --workers 1") from None
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(tokenizer: bytes) -> None:
    """Make a worker ready, and see to it that none outlives the process that it works for, however that ends."""
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that we work for
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _tokenizer = Tokenizer.from_json(tokenizer, "tokenizer")


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _encode(texts: list[str]) -> list[Tokens]:
    return _tokenizer.encode_batch(texts)
