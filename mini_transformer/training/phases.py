"""From sources to what the trainer needs: one tokenizer, a stream per phase, one validation stream."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain

import numpy as np
import tokenizers

from mini_transformer.config import DEFAULT_VOCAB_SIZE, TRAINABLE_TOKENIZERS, Phase, TextConfig, TrainConfig
from mini_transformer.data.batches import Feed, Mixture, Prefetched, TrainingStream
from mini_transformer.data.cache import Cache, digest, locked
from mini_transformer.data.corpus import Corpus, Encoded, HoldOut
from mini_transformer.data.large import LargeCorpus
from mini_transformer.data.load import load_corpus
from mini_transformer.data.overlap import LOOK, MOST, Overlap, beginning, overlap
from mini_transformer.data.sources import Document, Reading
from mini_transformer.data.tokens import DocumentStream, Integers, TokenDocuments
from mini_transformer.data.words import RUN
from mini_transformer.errors import UserError
from mini_transformer.text.pretrained import make_tokenizer
from mini_transformer.text.tokenizer import Tokenizer

SHORTEST_BLOCK = 8


@dataclass(frozen=True)
class PhaseText:
    """What one phase trains on."""

    phase: Phase
    stream: Feed
    documents: int
    characters: int
    digest: str


@dataclass(frozen=True)
class Material:
    """All text of a run, read and encoded."""

    tokenizer: Tokenizer
    phases: list[PhaseText]
    validation: DocumentStream
    validation_characters: int
    validation_digest: str
    validation_titles: list[Document]  # first line and file of each document
    suppress_tokens: list[int]  # token ids that no training text holds
    overlap: Overlap  # of the validation text with all training text
    block_size: int  # the one asked for, or as much as the shortest text has


@dataclass(frozen=True)
class _Share:
    """Sources whose documents are shuffled together, and their part of each batch."""

    weight: float
    corpus: Corpus
    encoded: Encoded

    def without(self, hashes: Integers, phase: Phase) -> "_Share":
        """The same less all documents to train on that are among those held out."""
        train = self.encoded.train
        known = np.isin(train.hashes, hashes)
        if not known.any() or known.all():  # nothing would be left: the overlap tells
            return self
        print(f"{_names(phase)}: {known.sum()} documents are held out for validation, too, and left out", flush=True)
        return replace(self, encoded=replace(self.encoded, train=train.take(~known)))


def _names(phase: Phase) -> str:
    return ", ".join(map(str, phase.data))


def read_material(config: TrainConfig) -> Material:
    """Read, split and encode the texts of a run. Raises `UserError` for text that cannot be used."""
    run, text = config.run, config.text
    store, reading = Cache(text.cache_dir), Reading(run.encoding, text.text_field, text.max_unreadable)

    def load(phase: Phase, hold_out: HoldOut) -> list[tuple[float, Corpus]]:
        groups = [(path,) for path in phase.data] if phase.weights else [phase.data]
        return [
            (weight, load_corpus(group, reading, store, text.in_memory, hold_out))
            for weight, group in zip(phase.weights or (1.0,), groups, strict=True)
        ]

    last = config.phases[-1]
    loaded = [load(phase, "tenth" if phase is last and run.val_data is None else "none") for phase in config.phases]
    if run.val_data is not None:
        loaded.append(load(Phase("validation", (run.val_data,), 0, 0.0), "all"))
    corpora = [[corpus for _, corpus in groups] for groups in loaded]
    tokenizer = _tokenizer(text, store, list(chain(*corpora)))
    shares = [[_Share(weight, corpus, corpus.encode(tokenizer)) for weight, corpus in groups] for groups in loaded]
    held = [(share.corpus, share.encoded.validation) for share in shares[-1]]
    if run.val_data is None:
        known = np.concatenate([part.hashes for _, part in held])
        shares = [
            [share.without(known, phase) for share in group] for group, phase in zip(shares, config.phases, strict=True)
        ]
    phases = []
    for i, phase in enumerate(config.phases):
        replayed = [] if i == 0 or not text.replay else shares[i - 1]
        phases.append(_phase_text(phase, shares[i], replayed, tokenizer.eot_id, config))
    validation = TokenDocuments.joined([part.tokens for _, part in held])
    shortest = min(phases, key=lambda p: p.stream.epoch_tokens)
    if shortest.stream.epoch_tokens <= SHORTEST_BLOCK or not len(validation):
        raise UserError(
            f"{_names(shortest.phase)}: {shortest.characters} characters of text are too few; "
            f"training and validation need at least {2 * SHORTEST_BLOCK}, and better some thousands"
        )
    seen = {tokenizer.eot_id}.union(*(share.encoded.seen for share in chain(*shares)))
    training = list(chain(*(corpora if run.val_data is None else corpora[:-1])))
    held_texts = (text for corpus, part in held for text in corpus.held(tokenizer, part))
    return Material(
        tokenizer=tokenizer,
        overlap=_overlap(store, corpora[-1], held_texts, training),
        phases=phases,
        validation=DocumentStream(validation, tokenizer.eot_id),
        validation_characters=sum(part.characters for _, part in held),
        validation_digest=_joined([corpus.held_digest for corpus in corpora[-1]]),
        validation_titles=[title for corpus, part in held for title in corpus.titles(tokenizer, part)],
        suppress_tokens=[i for i in range(tokenizer.vocab_size) if i not in seen],
        block_size=min(config.model.block_size, shortest.stream.epoch_tokens - 1),
    )


def _overlap(store: Cache, held: list[Corpus], held_texts: Iterator[str], training: list[Corpus]) -> Overlap:
    """The overlap of validation with training text. That of a big text is kept, and found again."""

    def measure() -> Overlap:
        return overlap(held_texts, (text for corpus in training for text in beginning(corpus.texts())))

    if not any(isinstance(corpus, LargeCorpus) for corpus in training):
        return measure()
    key = digest("overlap", RUN, MOST, LOOK, [c.held_digest for c in held], [c.digest for c in training])
    found = store.find("overlap", key, {"shared": int, "runs": int})
    return Overlap(**(found or store.keep("overlap", key, asdict(measure()))))


def _phase_text(
    phase: Phase, shares: Sequence[_Share], replayed: Sequence[_Share], eot_id: int, config: TrainConfig
) -> PhaseText:
    """The stream of one phase, with a part of each batch from the shares that are replayed."""
    seed, replay = config.run.seed, config.text.replay if replayed else 0.0
    total, old_total = sum(share.weight for share in shares), sum(share.weight for share in replayed)
    streams = [
        (share.weight / total * (1 - replay), TrainingStream(share.encoded.train.tokens, eot_id, seed))
        for share in shares
    ]
    # another order than the one in which the earlier phase saw them
    streams += [
        (s.weight / old_total * replay, TrainingStream(s.encoded.train.tokens, eot_id, seed, 1)) for s in replayed
    ]
    feed: Feed = streams[0][1] if len(streams) == 1 else Mixture([s for _, s in streams], [w for w, _ in streams])
    hashes = [share.corpus.digest for share in shares]
    return PhaseText(
        phase=phase,
        stream=Prefetched(feed),
        documents=sum(len(share.encoded.train.tokens) for share in shares),
        characters=sum(share.encoded.train.characters for share in shares),
        digest=digest(hashes, phase.weights) if phase.weights else _joined(hashes),
    )


def _joined(hashes: list[str]) -> str:
    return hashes[0] if len(hashes) == 1 else digest(hashes)


def _tokenizer(text: TextConfig, store: Cache, corpora: Sequence[Corpus]) -> Tokenizer:
    """The tokenizer that is asked for. One that is learnt from a big text is kept, and found again."""

    def learn() -> Tokenizer:
        texts = (piece for corpus in corpora for piece in corpus.texts())
        return make_tokenizer(text.tokenizer, text.vocab_size, texts, progress=sys.stderr.isatty())

    if text.tokenizer not in TRAINABLE_TOKENIZERS or not any(isinstance(c, LargeCorpus) for c in corpora):
        return learn()
    hashes = [corpus.digest for corpus in corpora]
    size = text.vocab_size or DEFAULT_VOCAB_SIZE
    folder = store.folder / "tokenizers" / digest(text.tokenizer, size, tokenizers.__version__, hashes)[:32]
    with store.writing():
        folder.parent.mkdir(exist_ok=True)
    with locked(folder.with_suffix(".lock"), "learns the same tokenizer"):
        with suppress(UserError):  # not there, or damaged
            return Tokenizer.load(folder)
        print(f"Learning the tokenizer ({text.tokenizer}) from the texts", flush=True)
        tokenizer = learn()
        with store.writing():
            tokenizer.save(folder)
    return tokenizer
