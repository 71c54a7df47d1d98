"""Writing: a prompt goes in, tokens come out one by one, for as long as one likes.

When the context is full, its last half is kept, positions start again at zero, and the cache is filled anew from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

import torch

from mini_transformer.config import SamplingConfig
from mini_transformer.errors import UserError
from mini_transformer.generation.sampling import sample
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.kv_cache import KVCache
from mini_transformer.model.pretrained import CONFIG, read_model, read_suppress_tokens
from mini_transformer.text.documents import DOCUMENT_SEPARATOR
from mini_transformer.text.tokenizer import Tokenizer


def context_start(tokens: int, block_size: int) -> int:
    """Where the context begins behind which the token number `tokens` is predicted, if read token by token."""
    start = 0
    while tokens - start > block_size:
        start += block_size - block_size // 2
    return start


@torch.inference_mode()
def generate_tokens(
    model: Decoder,
    prompt: list[int],
    sampling: SamplingConfig,
    generator: torch.Generator,
    suppressed: list[int],
    use_cache: bool = True,
) -> Iterator[int]:
    """Token ids that continue a prompt of one or more tokens, without end.

    `suppressed` ids are never drawn. Without the cache, the whole context is computed for each token: the reference.
    """
    block_size, device = model.config.block_size, next(model.parameters()).device
    tokens = list(prompt)
    cache = KVCache(model.config, 1, device, next(model.parameters()).dtype)
    start = context_start(len(tokens), block_size)
    unread = tokens[start:]
    while True:
        logits_v = model(torch.tensor([unread], device=device), cache if use_cache else None)[0, -1].float().cpu()
        logits_v[suppressed] = float("-inf")
        token = sample(logits_v, sampling, generator)
        yield token
        tokens.append(token)
        previous, start = start, context_start(len(tokens), block_size)
        if start != previous:
            cache.length = 0
        unread = [token] if use_cache and start == previous else tokens[start:]


@dataclass(frozen=True)
class Engine:
    """A model with its tokenizer, ready to write."""

    model: Decoder
    tokenizer: Tokenizer
    suppressed: list[int]

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "Engine":
        """From a model folder. Raises `UserError` if it is missing, incomplete or damaged."""
        model, tokenizer, suppressed = (
            read_model(folder, device),
            Tokenizer.load(folder),
            read_suppress_tokens(folder),
        )
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, "
                f"{CONFIG} says {model.config.vocab_size}: they do not belong together"
            )
        padding = range(tokenizer.vocab_size, model.config.vocab_size)
        return cls(model, tokenizer, [i for i in suppressed if i < model.config.vocab_size] + list(padding))

    def write(
        self, prompt: str, max_new_tokens: int, sampling: SamplingConfig, seed: int, stop_at_end: bool = False
    ) -> Iterator[str]:
        """The text that continues a prompt (which may be empty), piece by piece, the prompt itself not included.

        Where the model ends a document, the text stops if asked to, else two blank lines follow and then the next one.
        """
        eot_id = self.tokenizer.eot_id
        ids = [eot_id, *self.tokenizer.encode(prompt).tolist()]
        generator = torch.Generator().manual_seed(seed)
        tokens: Iterator[int] = generate_tokens(self.model, ids, sampling, generator, self.suppressed)
        tokens = islice(tokens, max_new_tokens)
        if stop_at_end:
            tokens = takewhile(lambda token: token != eot_id, tokens)
        return self.tokenizer.decode_stream(tokens, DOCUMENT_SEPARATOR)
