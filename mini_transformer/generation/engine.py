"""Generation: a prompt goes in, tokens come out one by one, without end.

When the context is full, its last half is kept, positions start again at zero, and the cache is filled anew from it.
"""

import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import torch

from mini_transformer.config import SamplingConfig
from mini_transformer.errors import UserError
from mini_transformer.generation.sampling import sample
from mini_transformer.generation.single_row import SingleRow, fits
from mini_transformer.model.attention import KVCache
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.pretrained import CONFIG, read_model, read_suppress_tokens
from mini_transformer.text.documents import DOCUMENT_SEPARATOR
from mini_transformer.text.tokenizer import Tokenizer

# what decides whether numba pays, in seconds: to load it, and what it saves for each token
LOADING, SAVED_PER_LAYER, SAVED_PER_WEIGHT = 1.0, 3e-5, 5e-11


def context_start(tokens: int, block_size: int) -> int:
    """The first token of the context from which the next one is predicted, after `tokens` tokens in all."""
    step = block_size - block_size // 2
    return max(0, math.ceil((tokens - block_size) / step)) * step


def single_row(model: Decoder, cache: KVCache, tokens: int) -> SingleRow | None:
    """What takes the step of one token in place of the model in a text of so many tokens; None where nothing fits."""
    if not fits(model):
        return None
    config, weights = model.config, model.parameter_counts()[1]
    if tokens * (config.n_layer * SAVED_PER_LAYER + weights * SAVED_PER_WEIGHT) >= LOADING and find_spec("numba"):
        try:
            from mini_transformer.generation.compiled import CompiledRow

            return CompiledRow(model, cache)
        except Exception as error:  # numba on a machine that we have not seen; everything can be written without it
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"numba does not compile the step, NumPy takes it ({reason})", file=sys.stderr)
    return SingleRow(model, cache)


def generate_tokens(
    model: Decoder,
    prompt: list[int],
    sampling: SamplingConfig,
    generator: random.Random,
    suppress_tokens: list[int],
    max_new_tokens: int = 0,
) -> Iterator[int]:
    """Token ids that continue a prompt of one or more, without end; never those of `suppress_tokens`.

    `max_new_tokens`: how many will be taken, where that is known; it decides what is worth preparing. Raises
    `UserError` if there is no token to draw.
    """
    block_size, parameter = model.config.block_size, next(model.parameters())
    tokens, start = list(prompt), 0
    cache = KVCache(model.config, 1, parameter.device, parameter.dtype)
    row = single_row(model, cache, max_new_tokens)
    suppressed = np.array(suppress_tokens, dtype=np.intp)
    while True:
        previous, start = start, context_start(len(tokens), block_size)
        if start != previous:
            cache.length = 0
        unread = tokens[start + cache.length :]
        if row is not None and len(unread) == 1:
            logits_v = row.step(unread[0])
        else:  # a prompt, or a context that is filled anew: many tokens at once are the model's strength
            with torch.inference_mode():
                logits_v = model(torch.tensor([unread], device=parameter.device), cache)[0, -1].float().cpu().numpy()
        logits_v[suppressed] = -np.inf
        tokens.append(sample(logits_v, sampling, generator))
        yield tokens[-1]


@dataclass(frozen=True)
class Engine:
    """Generates text with a model and its tokenizer; `suppress_tokens` are the ids that are never drawn."""

    model: Decoder
    tokenizer: Tokenizer
    suppress_tokens: list[int]

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "Engine":
        """The engine of a model folder. Raises `UserError` if it is missing, incomplete or damaged."""
        model, tokenizer = read_model(folder, device), Tokenizer.load(folder)
        suppress_tokens = read_suppress_tokens(folder)
        has, says = tokenizer.vocab_size, model.config.vocab_size
        if has > says:
            raise UserError(
                f"{folder}: the tokenizer has {has} tokens, {CONFIG} says {says}: they do not belong together"
            )
        padding = range(has, says)  # ids of the model that are no tokens
        return cls(model, tokenizer, [*{i for i in suppress_tokens if i < says}, *padding])

    def generate(
        self, prompt: str, max_new_tokens: int, sampling: SamplingConfig, seed: int, stop_at_end: bool = False
    ) -> Iterator[str]:
        """The text that continues a prompt, which may be empty: piece by piece, without the prompt itself.

        Where the model ends a document, the text stops if `stop_at_end`, else two blank lines follow and the next one.
        The same seed gives the same text. Raises `UserError` for a prompt that is not valid Unicode.
        """
        eot_id = self.tokenizer.eot_id
        ids = [eot_id, *self.tokenizer.encode(prompt).tolist()]
        endless = generate_tokens(self.model, ids, sampling, random.Random(seed), self.suppress_tokens, max_new_tokens)
        tokens: Iterator[int] = islice(endless, max_new_tokens)
        if stop_at_end:
            tokens = takewhile(lambda token: token != eot_id, tokens)
        return self.tokenizer.decode_stream(tokens, DOCUMENT_SEPARATOR)
