"""The engine: a model folder that writes, and says what a text costs it."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from mini_transformer.config import GenerateConfig, SamplingConfig
from mini_transformer.errors import UserError, did_you_mean
from mini_transformer.evaluation.likelihood import Score, score
from mini_transformer.generation.decoding import generate_tokens
from mini_transformer.model.decoder import Decoder, round_matrices
from mini_transformer.model.pretrained import CONFIG, model_folder, read_model, read_suppress_tokens
from mini_transformer.runtime import pick_device
from mini_transformer.settings import fill
from mini_transformer.text.documents import DOCUMENT_SEPARATOR
from mini_transformer.text.tokenizer import DecodeStream, Tokenizer

MAX_ROWS = 64  # that are written at a time
LOADING = ("model_dir", "precision")  # settings of a model, not of a text
SETTINGS = [f.name for part in (GenerateConfig, SamplingConfig) for f in fields(part) if f.name not in LOADING]


@dataclass(frozen=True)
class Engine:
    """Writes text with a model and its tokenizer; `suppress_tokens` are the ids that are never drawn.

    The settings of a text are, with the defaults of `generate.py`: `max_new_tokens`, `temperature` (0: always the
    likeliest token), `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed` (None: a new one) and `stop_at_end`. Where
    the model ends a document, a text stops if `stop_at_end`, else two blank lines follow and the next one. The same
    seed gives the same text. Raises `UserError` for a setting that is unknown or outside its limits, and for a prompt
    that is not valid Unicode.
    """

    model: Decoder
    tokenizer: Tokenizer
    suppress_tokens: list[int]

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "auto", precision: str = "float32") -> "Engine":
        """The engine of a model folder; `base` is the package's model. Raises `UserError` if it is not whole.

        `precision`: bfloat16 rounds the weights, of which a step on a CPU then reads half as many bytes.
        """
        fill(GenerateConfig, {"precision": precision})  # refuses any other
        folder = model_folder(Path(folder))
        if isinstance(device, str):
            kind, _, number = device.partition(":")  # cuda:1
            device = pick_device(kind, number or None)
        model, tokenizer = read_model(folder, device), Tokenizer.load(folder)
        if precision == "bfloat16":
            round_matrices(model)
        suppress_tokens = read_suppress_tokens(folder)
        has, says = tokenizer.vocab_size, model.config.vocab_size
        if has > says:
            raise UserError(
                f"{folder}: the tokenizer has {has} tokens, {CONFIG} says {says}: they do not belong together"
            )
        padding = range(has, says)  # ids of the model that are no tokens
        return cls(model, tokenizer, [*{i for i in suppress_tokens if i < says}, *padding])

    @overload
    def generate(self, prompt: str = "", max_new_tokens: int = 400, **settings: Any) -> str: ...
    @overload
    def generate(self, prompt: list[str], max_new_tokens: int = 400, **settings: Any) -> list[str]: ...
    def generate(self, prompt: str | list[str] = "", max_new_tokens: int = 400, **settings: Any) -> str | list[str]:
        """The text that continues a prompt, without the prompt; of a list of prompts, a list of texts.

        Prompt i of a list has the seed `seed` + i, and gets the text that it gets alone with that seed.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        texts = [""] * len(prompts)
        for i, piece in self.stream_batch(prompts, max_new_tokens, **settings):
            texts[i] += piece
        return texts[0] if isinstance(prompt, str) else texts

    def stream(self, prompt: str = "", max_new_tokens: int = 400, **settings: Any) -> Iterator[str]:
        """The same piece by piece, as it is written."""
        return (piece for _, piece in self.stream_batch([prompt], max_new_tokens, **settings))

    def stream_batch(self, prompts: list[str], max_new_tokens: int = 400, **settings: Any) -> Iterator[tuple[int, str]]:
        """The same of several prompts together: pairs of the number of a prompt and a piece of its text."""
        settings["max_new_tokens"] = max_new_tokens
        for name in settings:
            if name not in SETTINGS:
                raise UserError(f"`{name}`: unknown setting{did_you_mean(name, SETTINGS)}")
        config, sampling = fill(GenerateConfig, settings), fill(SamplingConfig, settings)
        seed = secrets.randbelow(2**31) if config.seed is None else config.seed
        eot_id = self.tokenizer.eot_id
        ids = [[eot_id, *self.tokenizer.encode(prompt).tolist()] for prompt in prompts]
        return self._stream(ids, config, sampling, seed)

    def _stream(
        self, ids: list[list[int]], config: GenerateConfig, sampling: SamplingConfig, seed: int
    ) -> Iterator[tuple[int, str]]:
        stop_id = self.tokenizer.eot_id if config.stop_at_end else None
        for first in range(0, len(ids), MAX_ROWS):
            prompts = ids[first : first + MAX_ROWS]
            generators = [np.random.default_rng(seed + first + i) for i in range(len(prompts))]
            texts = [DecodeStream(self.tokenizer, DOCUMENT_SEPARATOR) for _ in prompts]
            tokens = generate_tokens(
                self.model, prompts, sampling, generators, self.suppress_tokens, config.max_new_tokens, stop_id
            )
            for i, token in tokens:
                if piece := texts[i].step(token):
                    yield first + i, piece

    def score(self, text: str) -> Score:
        """How likely the model finds a text, token by token. Raises `UserError` if it is empty."""
        return score(self.model, self.tokenizer, text)
