"""Bits per character: the bits that a model needs to encode a file, divided by the file's characters.

The file's documents form the stream `<|endoftext|> d1 <|endoftext|> d2 <|endoftext|> ...`. Each token after the first
is predicted once, each `<|endoftext|>` included, in windows of the block size that move by half of it, so that each
prediction has at least half a block of context where there is that much. Nothing is masked and nothing is skipped, so
the figure is comparable between tokenizers, and with compressors.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from tqdm import tqdm

from mini_transformer.errors import UserError
from mini_transformer.model.decoder import Decoder
from mini_transformer.text.char import Tokens
from mini_transformer.text.documents import split_documents
from mini_transformer.text.tokenizer import EOT_TOKEN, Tokenizer


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a text, and its size: characters, bytes of UTF-8, predicted tokens."""

    bits_per_character: float
    bits_per_byte: float
    nats_per_token: float
    characters: int
    bytes: int
    tokens: int


def windows(tokens: int, block_size: int) -> Iterator[tuple[int, int, int]]:
    """(first, start, end) of each window over a stream: it reads [first, end) and predicts [start + 1, end + 1)."""
    start = 0
    while start < tokens - 1:
        end = min(start + (block_size if start == 0 else block_size // 2), tokens - 1)
        yield max(0, end - block_size), start, end
        start = end


@dataclass(frozen=True)
class Score:
    """The likelihood of a text token by token: each token as text, and the natural logarithm of its probability."""

    bits_per_character: float
    tokens: list[str]
    log_probabilities: list[float]


@torch.inference_mode()
def token_nats(
    model: Decoder, stream: Tokens, batch_size: int = 16, progress: bool = False
) -> Iterator[NDArray[np.float64]]:
    """The negative log-likelihood, in nats, of each token of a stream (T,) after the first: pieces of (T - 1,)."""
    device = next(model.parameters()).device
    ids = torch.from_numpy(stream.astype("int64"))
    bar = tqdm(total=len(ids) - 1, unit=" tokens", unit_scale=True, leave=False, disable=None if progress else True)
    # windows of the same shape are batched: all but the first and the last
    for _, same_shape in groupby(windows(len(ids), model.config.block_size), key=lambda w: (w[2] - w[0], w[1] - w[0])):
        while batch := list(islice(same_shape, batch_size)):
            inputs = torch.stack([ids[first:end] for first, _, end in batch]).to(device)
            targets = torch.stack([ids[start + 1 : end + 1] for _, start, end in batch]).to(device)
            logits = model(inputs)[:, -targets.shape[1] :].float()
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            bar.update(len(losses))
            yield losses.cpu().double().numpy()
    bar.close()


def document_stream(tokenizer: Tokenizer, text: str, name: str) -> Tokens:
    """The tokens (T,) of a text, an `<|endoftext|>` before, between and after its documents."""
    documents = split_documents(text)
    if not documents:
        raise UserError(f"{name}: empty: there is nothing to measure")
    eot = np.array([tokenizer.eot_id], dtype=tokenizer.dtype)
    return np.concatenate([eot, *(part for d in documents for part in (tokenizer.encode(d), eot))])


def measure(
    model: Decoder, tokenizer: Tokenizer, text: str, name: str = "the text", progress: bool = False
) -> Likelihood:
    """The likelihood of a text, exactly as in its file; `progress`: with a bar, on a terminal.

    Raises `UserError`, which names it, if there is no document, if the text does not come back from its tokens, or if
    the model has no probability for them.
    """
    stream = document_stream(tokenizer, text, name)
    characters, size, tokens = len(text), len(text.encode("utf-8")), len(stream) - 1
    nats = sum(float(piece.sum()) for piece in token_nats(model, stream, progress=progress))
    _check(nats, name)
    bits = nats / math.log(2)
    return Likelihood(bits / characters, bits / size, nats / tokens, characters, size, tokens)


def _check(nats: float, name: str) -> None:
    if not math.isfinite(nats):
        raise UserError(f"{name}: the model gives it no probability (its cost is {nats}): the weights are damaged")


def score(model: Decoder, tokenizer: Tokenizer, text: str) -> Score:
    """The likelihood of each token of a text, the closing `<|endoftext|>` of its documents included."""
    stream = document_stream(tokenizer, text, "the text")
    nats = np.concatenate(list(token_nats(model, stream)))
    _check(float(nats.sum()), "the text")
    tokens = [EOT_TOKEN if i == tokenizer.eot_id else tokenizer.decode([i]) for i in stream[1:].tolist()]
    return Score(float(nats.sum()) / math.log(2) / len(text), tokens, (-nats).tolist())
