"""From settings to what the trainer needs: one tokenizer, batches for each phase, one validation stream.

Much text is read twice at most: once to survey it and to learn the tokenizer, once to make its tokens; a text whose
tokens are in the cache is not read at all.
"""

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers

from mini_transformer.config import DEFAULT_VOCAB_SIZE, TRAINABLE_TOKENIZERS, Phase, TextConfig, TrainConfig
from mini_transformer.data.cache import DataCache, digest
from mini_transformer.data.corpus import Corpus
from mini_transformer.data.ngrams import MAX_RUNS, RUN, Contamination, ContaminationCheck
from mini_transformer.data.reading import ReaderConfig
from mini_transformer.data.sources import Sources
from mini_transformer.data.stream import BatchSource, Mixture, TokenDocuments, TokenStream, TrainingStream
from mini_transformer.data.tokenized import Title, TokenizedCorpus, tokenize
from mini_transformer.errors import UserError
from mini_transformer.runtime import log
from mini_transformer.text.documents import Piece
from mini_transformer.text.pretrained import make_tokenizer
from mini_transformer.text.segmentation import noisy_copies
from mini_transformer.text.tokenizer import Tokenizer

MIN_BLOCK = 8
NOISY = 0.7  # of a phase, if its words are cut at random
NOISY_COPIES, NOISY_CHARACTERS = 8, 1 << 23  # of a text, and as long as it may be: its copies lie in memory


@dataclass(frozen=True)
class PhaseData:
    """What one phase trains on."""

    phase: Phase
    batches: BatchSource
    noisy: BatchSource | None  # the same text in other pieces (see `text.segmentation`)
    share: float  # of each batch, that is the phase's own text
    documents: int  # of that text, as the next two
    characters: int
    tokens: int
    fingerprint: str

    def batches_at(self, progress: float) -> BatchSource:
        """The batches after a fraction of the phase: in noisy pieces at first, at the end as every reader has them."""
        return self.noisy if self.noisy and progress < NOISY else self.batches


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

    @property
    def tokens_per_character(self) -> float:
        """Of the validation text."""
        return (len(self.validation) - 1) / self.validation_characters


Weighted = tuple[float, Corpus]


def prepare_data(config: TrainConfig) -> TrainingData:
    """Read, split and tokenize the texts of a run. Raises `UserError` for text that cannot be used."""
    cache, check = DataCache(config.text.cache_dir), ContaminationCheck(repeats_count=config.run.val_data is not None)
    groups = _groups(config, cache)  # of each phase; then that of validation text of its own
    corpora = [corpus for _, corpus in chain(*groups)]
    validation = [corpus for _, corpus in groups[-1]]
    tokenizer = _tokenizer(config.text, corpora, check, cache)
    found, contamination = _tokenize(corpora, validation, tokenizer, check, cache)
    if config.run.val_data is None:
        held_out = np.concatenate([found[corpus].validation.hashes for corpus in validation])
        for phase, group in zip(config.phases, groups, strict=True):
            for _, corpus in group:
                train = found[corpus].train
                known = np.isin(train.hashes, held_out)
                if known.any() and known.all():  # nothing would be left
                    log(f"{_names(phase)}: all documents are held out for validation, too; the loss will flatter")
                elif known.any():
                    what = "1 document is" if known.sum() == 1 else f"{known.sum()} documents are"
                    log(f"{_names(phase)}: {what} held out for validation, too, and left out")
                    found[corpus] = replace(found[corpus], train=train.take(~known))
    phases = []
    shares = (config.text.preview, config.text.replay) if len(config.phases) == 2 else (0.0,)
    for i, (phase, share) in enumerate(zip(config.phases, shares, strict=True)):
        others = groups[1 - i] if share else []
        phases.append(_phase_data(phase, groups[i], others, share, found, tokenizer, config))
    documents = TokenDocuments.joined([found[corpus].validation for corpus in validation])
    shortest = min(phases, key=lambda p: p.batches.epoch_tokens)
    if shortest.batches.epoch_tokens <= MIN_BLOCK or not len(documents):
        characters = max(0, shortest.characters - 3 * shortest.documents + 2)  # without those between documents
        raise UserError(
            f"{_names(shortest.phase)}: too little text: {characters} character{'s' * (characters != 1)} to train on; "
            f"training and validation need at least {2 * MIN_BLOCK}, and better some thousands"
        )
    seen = {tokenizer.eot_id}.union(*(tokenized.seen for tokenized in found.values()))
    return TrainingData(
        tokenizer=tokenizer,
        phases=phases,
        validation=TokenStream(documents, tokenizer.eot_id),
        validation_characters=documents.characters,
        validation_fingerprint=digest([corpus.fingerprint(validation=True) for corpus in validation]),
        validation_titles=[title for corpus in validation for title in found[corpus].titles],
        suppress_tokens=[i for i in range(tokenizer.vocab_size) if i not in seen],
        contamination=contamination,
        block_size=min(config.model.block_size, shortest.batches.epoch_tokens - 1),
    )


def _names(phase: Phase) -> str:
    return ", ".join(map(str, phase.data))


def _groups(config: TrainConfig, cache: DataCache) -> list[list[Weighted]]:
    """The corpora of each phase, then that of validation text of its own. Sources without weights are one corpus."""
    text, run = config.text, config.run
    reader = ReaderConfig(run.encoding, text.text_field, text.max_unreadable)
    wanted: list[tuple[Sequence[Path], Sequence[float], float]] = [(p.data, p.weights, 0.0) for p in config.phases]
    if run.val_data is None:
        wanted[-1] = (*wanted[-1][:2], text.val_fraction)
    else:
        wanted.append(([run.val_data], (), 1.0))
    return [
        [
            (weight, Corpus(Sources(paths, reader), held_out, cache, text.in_memory))
            for weight, paths in zip(weights or (1.0,), [[path] for path in data] if weights else [data], strict=True)
        ]
        for data, weights, held_out in wanted
    ]


def _read(corpus: Corpus, check: ContaminationCheck) -> Iterator[tuple[Piece, bool]]:
    """Read a corpus once; the check looks at its text."""
    begins = True
    for piece, marked in corpus.read():
        check.add(piece.text, corpus.is_validation(marked), is_document=begins and piece.last)
        begins = piece.last
        yield piece, marked


def _tokenizer(text: TextConfig, corpora: Sequence[Corpus], check: ContaminationCheck, cache: DataCache) -> Tokenizer:
    """The tokenizer that is asked for; after this each corpus has a survey. One learnt from much text is cached."""
    is_trained = text.tokenizer in TRAINABLE_TOKENIZERS
    for corpus in corpora:
        if corpus.survey is None and not (is_trained and corpus.is_cached):
            deque(_read(corpus, check), maxlen=0)
    texts = (
        piece.text for corpus in corpora for piece, marked in _read(corpus, check) if not corpus.is_validation(marked)
    )
    learn = partial(make_tokenizer, text.tokenizer, text.vocab_size, texts, progress=sys.stderr.isatty())
    if not is_trained or not any(corpus.is_cached for corpus in corpora):
        return learn()
    settings = [text.tokenizer, text.vocab_size or DEFAULT_VOCAB_SIZE, tokenizers.__version__]
    states = [[corpus.sources.key(cache), corpus.val_fraction] for corpus in corpora]
    with cache.locked("tokenizers", digest(settings, states), "learns the same tokenizer") as folder:
        if all(corpus.find_survey() for corpus in corpora):
            with suppress(UserError):  # not there, or damaged
                return Tokenizer.load(folder / digest(settings, [corpus.fingerprint() for corpus in corpora]))
        log(f"Learning the tokenizer ({text.tokenizer}) from the texts")
        tokenizer = learn()
        tokenizer.save(folder / digest(settings, [corpus.fingerprint() for corpus in corpora]))
        return tokenizer


def _tokenize(
    corpora: Sequence[Corpus],
    validation: Sequence[Corpus],
    tokenizer: Tokenizer,
    check: ContaminationCheck,
    cache: DataCache,
) -> tuple[dict[Corpus, TokenizedCorpus], Contamination]:
    """The tokens of each corpus, and the contamination, for which the same reads serve. That of much text is cached."""
    training = [corpus for corpus in corpora if corpus.val_fraction < 1]
    prints = [[c.fingerprint(validation=True) for c in validation], [c.fingerprint() for c in training]]
    is_cached, key = any(corpus.is_cached for corpus in training), digest(RUN, MAX_RUNS, prints, "without repeats")
    known = cache.find("contamination", key, ["shared", "runs"]) if is_cached else None
    for corpus in validation:
        if known is None and not corpus.sources.reads:
            deque(_read(corpus, check), maxlen=0)
    check.search()
    found = {}
    for corpus in corpora:
        pieces = iter(corpus.read()) if known else _read(corpus, check)
        found[corpus] = tokenize(corpus, pieces, tokenizer)
        if known is None and corpus in training:
            deque(pieces, maxlen=0)  # what came from the cache is to be checked all the same
    contamination = Contamination(**known) if known else check.result()
    if is_cached and known is None:
        cache.keep("contamination", key, asdict(contamination))
    return found, contamination


def _phase_data(
    phase: Phase,
    group: Sequence[Weighted],
    others: Sequence[Weighted],
    others_share: float,
    found: Mapping[Corpus, TokenizedCorpus],
    tokenizer: Tokenizer,
    config: TrainConfig,
) -> PhaseData:
    """The batches of one phase, with a share of each from the corpora of the other one."""
    dropout, seed = config.text.bpe_dropout, config.run.seed
    if dropout and tokenizer.is_character_level:
        if config.text.tokenizer != "bpe":  # which learns nothing but characters from a word or two
            raise UserError("`bpe_dropout`: the tokenizer has characters only, which cannot be cut")
        dropout = 0.0
    streams, noisy, weights = [], list[TrainingStream](), []
    # the other phase's text comes in another order than in the other phase
    for corpora, share, more_seeds in ((group, 1 - others_share, ()), (others, others_share, (1,))):
        for weight, corpus in corpora:
            documents = found[corpus].train
            streams.append(TrainingStream(documents, tokenizer.eot_id, seed, *more_seeds))
            if dropout and documents.characters <= NOISY_CHARACTERS:
                documents = _noisy(documents, tokenizer, dropout, seed)
            elif dropout:
                log(f"{_names(phase)}: too much text for --bpe-dropout, read as it is")
            noisy.append(TrainingStream(documents, tokenizer.eot_id, seed, *more_seeds))
            weights.append(weight / sum(other for other, _ in corpora) * share)
    splits = [found[corpus].train for _, corpus in group]
    return PhaseData(
        phase=phase,
        batches=streams[0] if len(streams) == 1 else Mixture(streams, weights),
        noisy=None if not dropout else noisy[0] if len(noisy) == 1 else Mixture(noisy, weights),
        share=1 - others_share,
        documents=sum(map(len, splits)),
        characters=sum(split.characters for split in splits),
        tokens=sum(stream.epoch_tokens for stream in streams[: len(group)]),
        fingerprint=digest([corpus.fingerprint() for _, corpus in group], phase.weights),
    )


def _noisy(documents: TokenDocuments, tokenizer: Tokenizer, dropout: float, seed: int) -> TokenDocuments:
    """Several copies of documents in other pieces. Raises `UserError` if they do not come back from them."""
    texts = [tokenizer.decode(document.tolist()) for document in documents]
    copies = noisy_copies(tokenizer, texts, dropout, NOISY_COPIES, seed)
    if any(tokenizer.decode(copy.tolist()) != text for copy, text in zip(copies, texts, strict=False)):
        raise UserError("`bpe_dropout`: not with this tokenizer, whose words come back as others")
    lengths = np.array([len(copy) for copy in copies])
    rows = np.tile(documents.table[:, 2:], (NOISY_COPIES, 1))
    rows[:, 0] = lengths
    return TokenDocuments.of(np.concatenate(copies), rows)
