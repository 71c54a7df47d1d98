"""A run that starts from another model's weights: in its shape and, unless another is asked for, with its tokenizer.

With another tokenizer the rows of the vocabulary are matched by their tokens' text.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mini_transformer.checksums import sha256
from mini_transformer.config import TRAINABLE_TOKENIZERS, TrainConfig
from mini_transformer.errors import UserError
from mini_transformer.files import read_json
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.pretrained import CONFIG, WEIGHTS, config_from_json, read_model
from mini_transformer.runtime import log
from mini_transformer.settings import SHAPE
from mini_transformer.text.tokenizer import TOKENIZER_FILE, Tokenizer


def start_from(folder: Path, config: TrainConfig, flags: Collection[str], recipe: Collection[str]) -> TrainConfig:
    """The settings of a run that starts from the model of a folder.

    `flags`, `recipe`: the names of the settings given there. A recipe gives way to the model's shape and tokenizer; a
    flag must agree with its shape, but for the block size: positions are rotary, so no weight depends on it.
    Raises `UserError` if there is no such model, or a flag contradicts its shape.
    """
    _check_files(folder)
    for name, place in (("out_dir", config.run.out_dir), ("fork", config.run.fork)):
        if place and place.resolve() == folder.resolve():
            raise UserError(f"`init_from`: {folder} is the `{name}` itself; a new run needs a folder of its own")
    own, asked, text = config_from_json(read_json(folder / CONFIG), str(folder / CONFIG)), config.model, config.text
    block_size = asked.block_size if "block_size" in {*flags, *recipe} else own.block_size
    follows = own.sliding_window >= own.block_size and not ("sliding_window" in flags and asked.sliding_window)
    window = 0 if follows else own.sliding_window
    model = replace(own, block_size=block_size, sliding_window=window, dropout=asked.dropout, tie_embeddings=False)
    for name in (name for name in flags if name in SHAPE):
        flagged = replace(model, **{name: getattr(asked, name)}).resolve(0)  # a 0 as what it stands for in this model
        here, there = getattr(flagged, name), getattr(model.resolve(0), name)
        if here != there:
            raise UserError(f"`{name}`: {here}, but the model in {folder} (`init_from`) has {there}; leave it out")
    # the record of such a run, as a recipe, repeats a tokenizer that was learnt from the texts
    learnt = "init" in config.fingerprints and text.tokenizer in TRAINABLE_TOKENIZERS
    if "tokenizer" not in flags and not learnt:
        vocab_size = text.vocab_size if "vocab_size" in flags else 0
        text = replace(text, tokenizer=str(folder.resolve()), vocab_size=vocab_size)
    return replace(config, model=model, text=text)


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"`init_from`: {folder}: there is no such folder")
    for name in (CONFIG, WEIGHTS, TOKENIZER_FILE):
        if not (folder / name).is_file():
            in_parts = name == WEIGHTS and (folder / f"{WEIGHTS}.index.json").is_file()
            why = "is in several files: save it as one" if in_parts else "is missing: there is no model here (yet)"
            raise UserError(f"`init_from`: {folder}: {name} {why}")


@dataclass(frozen=True)
class Source:
    """What a run starts from."""

    folder: Path
    model: Decoder
    vocabulary: dict[str, int]  # the id of each token

    @classmethod
    def read(cls, folder: Path) -> "Source":
        """The model of a folder. Raises `UserError` if it is damaged."""
        return cls(folder, read_model(folder, torch.device("cpu")), Tokenizer.load(folder).backend.get_vocab())

    def copy_to(self, model: Decoder, tokenizer: Tokenizer) -> None:
        """Copy the weights into a new model; tokens that this one lacks keep their rows as they are there."""
        rows, known = self.model.config.vocab_size, self.vocabulary
        shared = [(i, known[token]) for token, i in tokenizer.backend.get_vocab().items() if token in known]
        here, there = torch.tensor([pair for pair in shared if pair[1] < rows], dtype=torch.int64).reshape(-1, 2).T
        weights, fresh = self.model.state_dict(), model.state_dict()
        for name in ("embed_tokens.weight", "lm_head.weight"):
            weights[name] = fresh[name].cpu().index_copy(0, here, weights[name][there])
        model.load_state_dict(weights)
        log(f"Init: {len(here):,} of {tokenizer.vocab_size:,} tokens have a row in {self.folder}")


def weights_fingerprint(folder: Path) -> str:
    """The first 32 digits of the SHA-256 of a folder's `model.safetensors`, in hexadecimal."""
    return sha256(folder / WEIGHTS)[:32]
