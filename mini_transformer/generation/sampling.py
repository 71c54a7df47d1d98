"""From logits to the next token: temperature, top-k, top-p."""

import torch
from torch import Tensor

from mini_transformer.config import SamplingConfig
from mini_transformer.errors import UserError


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
