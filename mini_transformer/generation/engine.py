"""Generation: a prompt goes in, tokens come out one by one, without end.

When the context is full, its last half is kept, positions start again at zero, and the cache is filled anew from it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

import torch
from torch import Tensor

from mini_transformer.config import SamplingConfig
from mini_transformer.errors import UserError
from mini_transformer.model.attention import KVCache
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.pretrained import CONFIG, read_model, read_suppress_tokens
from mini_transformer.text.documents import DOCUMENT_SEPARATOR
from mini_transformer.text.tokenizer import Tokenizer


def sample(logits_v: Tensor, sampling: SamplingConfig, generator: torch.Generator) -> int:
    """Draw one token id from logits (V,) on the CPU. Raises `UserError` if no token has a probability."""
    if not torch.isfinite(logits_v.max()):  # NaN, or every token suppressed
        raise UserError("the model gives no token a probability: its weights are damaged, or all tokens are suppressed")
    if sampling.temperature == 0:
        return int(logits_v.argmax())
    scores, ids = logits_v.double().sort(descending=True, stable=True)
    scores = (scores - scores[0]) / sampling.temperature  # the likeliest is 0, however small the temperature
    if sampling.top_k:
        scores, ids = scores[: sampling.top_k], ids[: sampling.top_k]
    probabilities = scores.softmax(-1)
    if sampling.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities  # sum over all likelier tokens: the first one always stays
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def context_start(tokens: int, block_size: int) -> int:
    """The first token of the context from which the next one is predicted, after `tokens` tokens in all."""
    step = block_size - block_size // 2
    return max(0, math.ceil((tokens - block_size) / step)) * step


@torch.inference_mode()
def generate_tokens(
    model: Decoder, prompt: list[int], sampling: SamplingConfig, generator: torch.Generator, suppress_tokens: list[int]
) -> Iterator[int]:
    """Token ids that continue a prompt of one or more, without end; never those of `suppress_tokens`.

    `generator` is on the CPU. Raises `UserError` if there is no token to draw.
    """
    block_size, device = model.config.block_size, next(model.parameters()).device
    tokens, start = list(prompt), 0
    cache = KVCache(model.config, 1, device, next(model.parameters()).dtype)
    while True:
        previous, start = start, context_start(len(tokens), block_size)
        if start != previous:
            cache.length = 0
        unread = torch.tensor([tokens[start + cache.length :]], device=device)
        logits_v = model(unread, cache)[0, -1].float().cpu()
        logits_v[suppress_tokens] = float("-inf")
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
        return cls(model, tokenizer, [*(i for i in suppress_tokens if i < says), *padding])

    def generate(
        self, prompt: str, max_new_tokens: int, sampling: SamplingConfig, seed: int, stop_at_end: bool = False
    ) -> Iterator[str]:
        """The text that continues a prompt, which may be empty: piece by piece, without the prompt itself.

        Where the model ends a document, the text stops if `stop_at_end`, else two blank lines follow and the next one.
        The same seed gives the same text. Raises `UserError` for a prompt that is not valid Unicode.
        """
        eot_id = self.tokenizer.eot_id
        ids = [eot_id, *self.tokenizer.encode(prompt).tolist()]
        endless = generate_tokens(self.model, ids, sampling, torch.Generator().manual_seed(seed), self.suppress_tokens)
        tokens: Iterator[int] = islice(endless, max_new_tokens)
        if stop_at_end:
            tokens = takewhile(lambda token: token != eot_id, tokens)
        return self.tokenizer.decode_stream(tokens, DOCUMENT_SEPARATOR)
