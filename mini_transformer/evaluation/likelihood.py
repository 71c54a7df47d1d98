"""Bits per character: what it costs to reproduce a file with a model, over the file's characters.

The file's documents form the stream `<|endoftext|> d1 <|endoftext|> d2 <|endoftext|> ...`; each token after the first
is predicted once, the end tokens included, in windows of the block size that move by half of it, so that each
prediction has at least half a block of context where there is that much. Nothing is masked and nothing is skipped, so
the figure compares between tokenizers, and with compressors.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import torch
from torch.nn import functional as F

from mini_transformer.errors import UserError
from mini_transformer.model.decoder import Decoder
from mini_transformer.text.documents import split_documents
from mini_transformer.text.tokenizer import Tokenizer, Tokens, join_documents


@dataclass(frozen=True)
class Likelihood:
    """The measure and what it was taken on."""

    bits_per_character: float
    bits_per_byte: float
    nats_per_token: float
    characters: int
    bytes: int
    tokens: int


def windows(tokens: int, block_size: int) -> Iterator[tuple[int, int, int]]:
    """(first input, first predicted, end) of each window over a stream: inputs [first, end), targets one further."""
    start = 0
    while start < tokens - 1:
        end = min(start + (block_size if start == 0 else block_size // 2), tokens - 1)
        yield max(0, end - block_size), start, end
        start = end


@torch.inference_mode()
def stream_nats(model: Decoder, stream: Tokens, batch_size: int = 16) -> float:
    """The sum of -log p over all tokens of a stream after the first."""
    device = next(model.parameters()).device
    ids = torch.from_numpy(stream.astype("int64"))
    nats = 0.0
    # windows of the same shape go through the model together: all but the first and the last
    for _, alike in groupby(windows(len(ids), model.config.block_size), key=lambda w: (w[2] - w[0], w[1] - w[0])):
        while batch := list(islice(alike, batch_size)):
            inputs = torch.stack([ids[first:end] for first, _, end in batch]).to(device)
            targets = torch.stack([ids[start + 1 : end + 1] for _, start, end in batch]).to(device)
            logits = model(inputs)[:, -targets.shape[1] :].float()
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            nats += losses.cpu().double().sum().item()
    return nats


def measure(model: Decoder, tokenizer: Tokenizer, text: str, name: str = "the text") -> Likelihood:
    """The likelihood of a text as it stands in its file. Raises `UserError` if it holds nothing to predict."""
    documents = split_documents(text)
    if not documents:
        raise UserError(f"{name}: empty: there is nothing to measure")
    stream = join_documents([tokenizer.encode(document) for document in documents], tokenizer.eot_id)
    nats = stream_nats(model, stream)
    size = len(text.encode("utf-8"))
    return Likelihood(
        bits_per_character=nats / math.log(2) / len(text),
        bits_per_byte=nats / math.log(2) / size,
        nats_per_token=nats / (len(stream) - 1),
        characters=len(text),
        bytes=size,
        tokens=len(stream) - 1,
    )
