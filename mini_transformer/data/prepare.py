"""From settings to what the trainer needs: one tokenizer, batches for each phase, one validation stream.

A text is read twice at most: once to survey it and to learn the tokenizer, once to make its tokens; a text whose tokens
are in the cache is not read at all.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers

from mini_transformer.config import DEFAULT_VOCAB_SIZE, TRAINABLE_TOKENIZERS, Phase, TextConfig, TrainConfig
from mini_transformer.data.cache import DataCache, digest
from mini_transformer.data.corpus import Corpus, SplitMode
from mini_transformer.data.ngrams import MAX_RUNS, RUN, Contamination, ContaminationCheck
from mini_transformer.data.reading import ReaderConfig
from mini_transformer.data.sources import Sources
from mini_transformer.data.stream import BatchSource, Mixture, TrainingStream
from mini_transformer.data.tokenized import Title, TokenizedCorpus, tokenize
from mini_transformer.data.tokens import Integers, TokenDocuments, TokenStream
from mini_transformer.errors import UserError
from mini_transformer.runtime import log
from mini_transformer.text.documents import Piece
from mini_transformer.text.pretrained import make_tokenizer
from mini_transformer.text.tokenizer import Tokenizer

MIN_BLOCK = 8
CHECKED = 1 << 30  # characters of each training text in which validation text is looked for


@dataclass(frozen=True)
class PhaseData:
    """What one phase trains on."""

    phase: Phase
    batches: BatchSource
    documents: int
    characters: int
    fingerprint: str


@dataclass(frozen=True)
class TrainingData:
    """All text of a run, read and tokenized."""

    tokenizer: Tokenizer
    phases: list[PhaseData]
    validation: TokenStream
    validation_characters: int
    validation_fingerprint: str
    validation_titles: list[Title]
    suppress_tokens: list[int]  # ids that no training text holds
    contamination: Contamination  # of the training text by the validation text
    block_size: int  # the one asked for, or as much as the shortest text has


@dataclass(frozen=True)
class _Share:
    """A corpus and its part of each batch."""

    weight: float
    corpus: Corpus


def prepare_data(config: TrainConfig) -> TrainingData:
    """Read, split and tokenize the texts of a run. Raises `UserError` for text that cannot be used."""
    cache, check = DataCache(config.text.cache_dir), ContaminationCheck()
    shares = _shares(config, cache)
    phases = shares if config.run.val_data is None else shares[:-1]
    corpora = [share.corpus for share in chain(*shares)]
    validation = [share.corpus for share in shares[-1]]
    tokenizer = _tokenizer(config.text, corpora, check, cache)
    found, contamination = _tokenize(corpora, validation, tokenizer, check, cache)
    if config.run.val_data is None:
        held_out = np.concatenate([found[corpus].validation.hashes for corpus in validation])
        for phase, group in zip(config.phases, phases, strict=True):
            for share in group:
                found[share.corpus] = _without(found[share.corpus], held_out, phase)
    data = []
    for i, phase in enumerate(config.phases):
        replayed = phases[i - 1] if i and config.text.replay else []
        data.append(_phase_data(phase, phases[i], replayed, found, tokenizer.eot_id, config))
    splits = [found[corpus].validation for corpus in validation]
    documents = TokenDocuments.joined([split.tokens for split in splits])
    shortest = min(data, key=lambda p: p.batches.epoch_tokens)
    if shortest.batches.epoch_tokens <= MIN_BLOCK or not len(documents):
        raise UserError(
            f"{_names(shortest.phase)}: {shortest.characters} characters of text are too few; "
            f"training and validation need at least {2 * MIN_BLOCK}, and better some thousands"
        )
    seen = {tokenizer.eot_id}.union(*(tokenized.seen for tokenized in found.values()))
    return TrainingData(
        tokenizer=tokenizer,
        phases=data,
        validation=TokenStream(documents, tokenizer.eot_id),
        validation_characters=sum(split.characters for split in splits),
        validation_fingerprint=digest([corpus.fingerprint(validation=True) for corpus in validation]),
        validation_titles=[title for corpus in validation for title in found[corpus].titles],
        suppress_tokens=[i for i in range(tokenizer.vocab_size) if i not in seen],
        contamination=contamination,
        block_size=min(config.model.block_size, shortest.batches.epoch_tokens - 1),
    )


def _names(phase: Phase) -> str:
    return ", ".join(map(str, phase.data))


def _shares(config: TrainConfig, cache: DataCache) -> list[list[_Share]]:
    """The corpora of each phase, then that of validation text of its own. Sources without weights are one corpus."""
    text, run = config.text, config.run
    reader = ReaderConfig(run.encoding, text.text_field, text.max_unreadable)

    def corpora(data: Sequence[Path], weights: Sequence[float], mode: SplitMode) -> list[_Share]:
        groups = [(path,) for path in data] if weights else [tuple(data)]
        return [
            _Share(weight, Corpus(Sources(group, reader), mode, cache, text.in_memory))
            for weight, group in zip(weights or (1.0,), groups, strict=True)
        ]

    split: SplitMode = "tenth" if run.val_data is None else "none"
    shares = [
        corpora(phase.data, phase.weights, split if phase is config.phases[-1] else "none") for phase in config.phases
    ]
    return shares if run.val_data is None else [*shares, corpora([run.val_data], (), "all")]


def _training_texts(corpus: Corpus, check: ContaminationCheck) -> Iterator[str]:
    """Read a corpus: its training text; the check takes in its validation text."""
    for piece, marked in corpus.read():
        if corpus.is_validation(marked):
            check.add_validation(piece.text)
        else:
            yield piece.text


def _exhaust(iterator: Iterator[object]) -> None:
    for _ in iterator:
        pass


def _tokenizer(text: TextConfig, corpora: Sequence[Corpus], check: ContaminationCheck, cache: DataCache) -> Tokenizer:
    """The tokenizer that is asked for; after this each corpus has a survey. One learnt from much text is cached."""

    def learn() -> Tokenizer:
        texts = chain.from_iterable(_training_texts(corpus, check) for corpus in corpora)
        return make_tokenizer(text.tokenizer, text.vocab_size, texts, progress=sys.stderr.isatty())

    def survey(some: Iterator[Corpus]) -> None:
        for corpus in some:
            if corpus.survey is None:
                _exhaust(_training_texts(corpus, check))

    is_trained = text.tokenizer in TRAINABLE_TOKENIZERS
    if not is_trained or not any(corpus.is_cached for corpus in corpora):
        tokenizer = learn()
        survey(iter(corpora))  # a ready-made tokenizer has read nothing
        return tokenizer
    survey(corpus for corpus in corpora if not corpus.is_cached)
    settings = [text.tokenizer, text.vocab_size or DEFAULT_VOCAB_SIZE, tokenizers.__version__]
    states = [[corpus.sources.key(cache), corpus.mode] for corpus in corpora]
    with cache.locked("tokenizers", digest(settings, states), "learns the same tokenizer") as folder:

        def place() -> Path:
            return folder / digest(settings, [corpus.fingerprint() for corpus in corpora])

        if all(corpus.find_survey() for corpus in corpora):
            with suppress(UserError):  # not there, or damaged
                return Tokenizer.load(place())
        log(f"Learning the tokenizer ({text.tokenizer}) from the texts")
        tokenizer = learn()
        tokenizer.save(place())
        return tokenizer


def _tokenize(
    corpora: Sequence[Corpus],
    validation: Sequence[Corpus],
    tokenizer: Tokenizer,
    check: ContaminationCheck,
    cache: DataCache,
) -> tuple[dict[Corpus, TokenizedCorpus], Contamination]:
    """The tokens of each corpus, and the contamination, for which the same read serves. That of much text is cached."""
    training = [corpus for corpus in corpora if corpus.mode != "all"]
    prints = [corpus.fingerprint(validation=True) for corpus in validation]
    key = digest(RUN, MAX_RUNS, CHECKED, prints, [corpus.fingerprint() for corpus in training])
    is_cached = any(corpus.is_cached for corpus in training)
    known = cache.find("contamination", key, {"shared": int, "runs": int}) if is_cached else None
    if known is None:
        for corpus in validation:
            if not corpus.sources.reads:
                _exhaust(_training_texts(corpus, check))
    found = {}
    for corpus in corpora:
        pieces = iter(corpus.read()) if known else _checked(corpus, check)
        found[corpus] = tokenize(corpus, pieces, tokenizer)
        if known is None and corpus in training:
            _exhaust(pieces)
    if known is not None:
        return found, Contamination(**known)
    contamination = check.result()
    if is_cached:
        cache.keep("contamination", key, asdict(contamination))
    return found, contamination


def _checked(corpus: Corpus, check: ContaminationCheck) -> Iterator[tuple[Piece, bool]]:
    """Read a corpus; the check looks at its training text."""
    left = CHECKED
    for piece, marked in corpus.read():
        if left > 0 and not corpus.is_validation(marked):
            check.add_training(piece.text)
            left -= len(piece.text)
        yield piece, marked


def _without(tokenized: TokenizedCorpus, held_out: Integers, phase: Phase) -> TokenizedCorpus:
    """The same less all training documents that are among those held out for validation."""
    known = np.isin(tokenized.train.hashes, held_out)
    if not known.any() or known.all():  # nothing would be left: the contamination tells
        return tokenized
    log(f"{_names(phase)}: {known.sum()} documents are held out for validation, too, and left out")
    return replace(tokenized, train=tokenized.train.take(~known))


def _phase_data(
    phase: Phase,
    shares: Sequence[_Share],
    replayed: Sequence[_Share],
    found: Mapping[Corpus, TokenizedCorpus],
    eot_id: int,
    config: TrainConfig,
) -> PhaseData:
    """The batches of one phase, with a part of each from the corpora that are replayed."""
    seed, replay = config.run.seed, config.text.replay if replayed else 0.0
    streams, weights = [], []
    # replayed text comes in another order than the one in which the phase before it saw it
    for group, part, more_seeds in ((shares, 1 - replay, ()), (replayed, replay, (1,))):
        for share in group:
            streams.append(TrainingStream(found[share.corpus].train.tokens, eot_id, seed, *more_seeds))
            weights.append(share.weight / sum(other.weight for other in group) * part)
    splits = [found[share.corpus].train for share in shares]
    return PhaseData(
        phase=phase,
        batches=streams[0] if len(streams) == 1 else Mixture(streams, weights),
        documents=sum(len(split.tokens) for split in splits),
        characters=sum(split.characters for split in splits),
        fingerprint=digest([share.corpus.fingerprint() for share in shares], phase.weights),
    )
