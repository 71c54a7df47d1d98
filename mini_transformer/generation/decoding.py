"""Decoding: prompts go in, and tokens come out, one for each row of a batch at a time.

When the context of a row is full, its last half is kept, positions start again at zero, and the cache is filled anew
from it. Rows may be of different lengths. Axes: B rows, V vocabulary.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count, islice

import numpy as np
import torch
from numpy.typing import NDArray

from mini_transformer.config import SamplingConfig
from mini_transformer.generation.graphed import GraphedStep
from mini_transformer.generation.sampling import sample
from mini_transformer.generation.single_row import SingleRow, fits
from mini_transformer.model.attention import KVCache
from mini_transformer.model.decoder import Decoder

Step = Callable[[list[int]], NDArray[np.float32]]  # one token for each row (B) to logits (B, V)
# what decides whether numba pays, in seconds: to load it, and what it saves for each token
LOADING, SAVED_PER_LAYER, SAVED_PER_WEIGHT = 1.0, 3e-5, 5e-11
WORTH_RECORDING = 16  # tokens from which a CUDA graph pays


@dataclass
class Row:
    """One text of a batch: its number, its tokens so far, its random numbers, and where its context starts."""

    number: int
    tokens: list[int]
    generator: np.random.Generator
    start: int = 0


def context_start(tokens: int, block_size: int) -> int:
    """The first token of the context from which the next one is predicted, after `tokens` tokens in all."""
    step = block_size - block_size // 2
    return max(0, math.ceil((tokens - block_size) / step)) * step


def make_cache(model: Decoder, batch: int, size: int | None = None) -> KVCache:
    """An empty cache of the model's type, on its device."""
    parameter = next(model.parameters())
    return KVCache(model.config, batch, parameter.device, parameter.dtype, size)


def model_step(model: Decoder, cache: KVCache) -> Step:
    """The model's own step: for any number of rows, on any device."""

    @torch.inference_mode()
    def step(ids: list[int]) -> NDArray[np.float32]:
        logits_bv = model(torch.tensor(ids, device=cache.keys.device)[:, None], cache)[:, -1]
        return logits_bv.float().cpu().numpy()

    return step


def make_step(model: Decoder, cache: KVCache, tokens: int) -> Step:
    """What takes the step of one token in texts of so many tokens each; the tokens are added to the cache."""
    B = len(cache.lengths)
    if cache.keys.device.type == "cuda" and not 0 < tokens < WORTH_RECORDING:
        try:
            return GraphedStep(model, cache).step
        except Exception as error:  # of a GPU that we have not seen
            _say("no CUDA graph of the step can be recorded", error)
    layers, weights = model.config.n_layer, model.parameter_counts()[1]
    saved = B * tokens * (layers * SAVED_PER_LAYER + weights * SAVED_PER_WEIGHT)
    if fits(model) and saved >= LOADING and find_spec("numba"):
        try:
            from mini_transformer.generation.compiled import CompiledRows

            return CompiledRows(model, cache).step
        except Exception as error:  # numba on a machine that we have not seen; everything can be written without it
            _say("numba does not compile the step", error)
    if fits(model) and B == 1:
        row = SingleRow(model, cache)
        return lambda ids: row.step(ids[0])[None]
    return model_step(model, cache)


def _say(what: str, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    print(f"{what}, it is taken without ({reason})", file=sys.stderr)


@torch.inference_mode()
def prefill(model: Decoder, cache: KVCache, rows: Sequence[Row]) -> None:
    """Let the cache hold the context of each row but its last token: contexts of one length together, equal ones once.

    Many tokens at once are the model's own strength, on any device.
    """
    contexts: dict[int, tuple[int, ...]] = {}
    for i, row in enumerate(rows):
        start = context_start(len(row.tokens), model.config.block_size)
        if start != row.start:
            row.start, cache.lengths[i] = start, 0
        if unread := row.tokens[start + cache.lengths[i] : -1]:
            contexts[i] = tuple(unread)
    for length in sorted({len(context) for context in contexts.values()}):
        members = [i for i, context in contexts.items() if len(context) == length]
        distinct = list(dict.fromkeys(contexts[i] for i in members))
        part = make_cache(model, len(distinct), length)
        model(torch.tensor(distinct, device=cache.keys.device), part, logits_to_keep=1)
        cache.copy(members, part, [distinct.index(contexts[i]) for i in members])


def generate_tokens(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    generators: Sequence[np.random.Generator],
    suppress_tokens: Sequence[int] = (),
    max_new_tokens: int | None = None,
    stop_id: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Pairs of a row and its next token id, for prompts of one or more tokens; never those of `suppress_tokens`.

    Each row has its own generator, so its text does not depend on the other rows. It ends after `max_new_tokens`
    (None: never), or before the token `stop_id`. Raises `UserError` if there is no token to draw.
    """
    rows = [Row(i, list(prompt), generators[i]) for i, prompt in enumerate(prompts)]
    cache = make_cache(model, len(rows))
    step = make_step(model, cache, max_new_tokens or 0)
    suppressed = np.array(suppress_tokens, dtype=np.intp)
    for _ in islice(count(), max_new_tokens):
        prefill(model, cache, rows)
        going = []
        for i, (row, logits_v) in enumerate(zip(rows, step([row.tokens[-1] for row in rows]), strict=True)):
            logits_v[suppressed] = -np.inf
            token = sample(logits_v, sampling, row.generator, row.tokens[row.start :])
            if token != stop_id:
                row.tokens.append(token)
                going.append(i)
                yield row.number, token
        if len(going) < len(rows):
            cache.keep(going)
            rows = [rows[i] for i in going]
        if not rows:
            return
