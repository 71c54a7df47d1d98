"""From files to what the trainer needs: one tokenizer, a stream per phase, one validation stream."""

import hashlib
from dataclasses import dataclass

import numpy as np

from mini_transformer.config import Phase, TrainConfig
from mini_transformer.data.batches import TrainingStream, join_documents
from mini_transformer.data.sources import read_documents, split_validation
from mini_transformer.errors import UserError
from mini_transformer.text.make import make_tokenizer
from mini_transformer.text.tokenizer import Tokenizer, Tokens

SHORTEST_BLOCK = 8


@dataclass(frozen=True)
class PhaseText:
    """What one phase trains on."""

    phase: Phase
    stream: TrainingStream
    characters: int
    digest: str


@dataclass(frozen=True)
class Material:
    """All text of a run, read and encoded."""

    tokenizer: Tokenizer
    phases: list[PhaseText]
    validation: Tokens
    validation_characters: int
    validation_digest: str
    unseen: list[int]  # token ids that no training text holds
    block_size: int  # the one asked for, or as much as the shortest text has


def _digest(documents: list[str]) -> str:
    return hashlib.sha256("\0".join(documents).encode("utf-8")).hexdigest()


def _characters(documents: list[str]) -> int:
    return sum(map(len, documents)) + 3 * len(documents)  # a border is three line feeds


def read_material(config: TrainConfig) -> Material:
    """Read, split and encode the texts of a run. Raises `UserError` for text that cannot be used."""
    encoding = config.run.encoding
    texts = [read_documents(phase.data, encoding) for phase in config.phases]
    if config.run.val_data is not None:
        validation = read_documents((config.run.val_data,), encoding)
    else:
        split = split_validation(texts[-1])
        texts[-1], validation = split.train, split.validation
    tokenizer = make_tokenizer(config.text, (document for documents in texts for document in documents))
    phases, seen = [], np.zeros(tokenizer.vocab_size, dtype=bool)
    seen[tokenizer.end_id] = True
    for phase, documents in zip(config.phases, texts, strict=True):
        encoded = [tokenizer.encode(document) for document in documents]
        for tokens in encoded:
            seen[tokens] = True
        stream = TrainingStream(encoded, tokenizer.end_id, config.run.seed)
        phases.append(PhaseText(phase, stream, _characters(documents), _digest(documents)))
    shortest = min(phases, key=lambda p: p.stream.epoch_tokens)
    if shortest.stream.epoch_tokens <= SHORTEST_BLOCK or not validation:
        raise UserError(
            f"{', '.join(map(str, shortest.phase.data))}: {shortest.characters} characters of text are too few; "
            f"training and validation need at least {2 * SHORTEST_BLOCK}, and better some thousands"
        )
    return Material(
        tokenizer=tokenizer,
        phases=phases,
        validation=join_documents([tokenizer.encode(document) for document in validation], tokenizer.end_id),
        validation_characters=_characters(validation),
        validation_digest=_digest(validation),
        unseen=np.flatnonzero(~seen).tolist(),
        block_size=min(config.model.block_size, shortest.stream.epoch_tokens - 1),
    )
