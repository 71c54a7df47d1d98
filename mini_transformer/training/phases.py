"""From sources to what the trainer needs: one tokenizer, a stream per phase, one validation stream."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain

import tokenizers

from mini_transformer.config import USUAL_BPE, Phase, TextConfig, TrainConfig
from mini_transformer.data.batches import Feed, Mixture, Prefetched, TrainingStream
from mini_transformer.data.cache import Cache, digest
from mini_transformer.data.corpus import TITLE, Corpus, Encoded, HoldOut, first_line
from mini_transformer.data.large import LargeCorpus
from mini_transformer.data.load import load_corpora
from mini_transformer.data.overlap import LOOK, MOST, Overlap, beginning, overlap
from mini_transformer.data.sources import Document, Reading
from mini_transformer.data.tokens import DocumentStream, TokenDocuments
from mini_transformer.data.words import RUN
from mini_transformer.errors import UserError
from mini_transformer.text.make import make_tokenizer, write_tokenizer
from mini_transformer.text.tokenizer import FILE, Tokenizer

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
    unseen: list[int]  # token ids that no training text holds
    overlap: Overlap  # of the validation text with all training text
    block_size: int  # the one asked for, or as much as the shortest text has


@dataclass(frozen=True)
class _Share:
    """Sources whose documents are shuffled together, and their part of each batch."""

    weight: float
    corpora: list[Corpus]
    encoded: list[Encoded]

    @property
    def train(self) -> TokenDocuments:
        return TokenDocuments.joined([part.train for part in self.encoded])


def read_material(config: TrainConfig) -> Material:
    """Read, split and encode the texts of a run. Raises `UserError` for text that cannot be used."""
    run, text = config.run, config.text
    store, reading = Cache(text.cache_dir), Reading(run.encoding, text.text_field, text.max_unreadable)

    def load(phase: Phase, hold_out: HoldOut) -> list[tuple[float, list[Corpus]]]:
        groups = [(path,) for path in phase.data] if phase.weights else [phase.data]
        return [
            (weight, load_corpora(group, reading, store, text.in_memory, hold_out))
            for weight, group in zip(phase.weights or (1.0,), groups, strict=True)
        ]

    last = config.phases[-1]
    loaded = [load(phase, "tenth" if phase is last and run.val_data is None else "none") for phase in config.phases]
    if run.val_data is not None:
        loaded.append(load(Phase("validation", (run.val_data,), 0, 0.0), "all"))
    corpora = [[corpus for _, group in groups for corpus in group] for groups in loaded]
    tokenizer = _tokenizer(text, store, corpora)
    shares = [
        [_Share(weight, group, [corpus.encode(tokenizer) for corpus in group]) for weight, group in groups]
        for groups in loaded
    ]
    phases = []
    for i, phase in enumerate(config.phases):
        replayed = [] if i == 0 or not text.replay else shares[i - 1]
        phases.append(_phase_text(phase, shares[i], replayed, tokenizer.end_id, config))
    held = [part for share in shares[-1] for part in share.encoded]
    validation = TokenDocuments.joined([part.validation for part in held])
    shortest = min(phases, key=lambda p: p.stream.epoch_tokens)
    if shortest.stream.epoch_tokens <= SHORTEST_BLOCK or not len(validation):
        raise UserError(
            f"{', '.join(map(str, shortest.phase.data))}: {shortest.characters} characters of text are too few; "
            f"training and validation need at least {2 * SHORTEST_BLOCK}, and better some thousands"
        )
    seen = {tokenizer.end_id}.union(*(part.seen for share in chain(*shares) for part in share.encoded))
    titles = [
        Document(first_line(document.text), document.origin)
        for corpus, part in zip(corpora[-1], held, strict=True)
        for document in corpus.held(tokenizer, part.validation, TITLE)
    ]
    training = list(chain(*(corpora if run.val_data is None else corpora[:-1])))
    held_texts = (
        document.text
        for corpus, part in zip(corpora[-1], held, strict=True)
        for document in corpus.held(tokenizer, part.validation)
    )
    return Material(
        tokenizer=tokenizer,
        overlap=_overlap(store, corpora[-1], held_texts, training),
        phases=phases,
        validation=DocumentStream(validation, tokenizer.end_id),
        validation_characters=sum(part.characters[1] for part in held),
        validation_digest=_joined([corpus.held_digest for corpus in corpora[-1]]),
        validation_titles=titles,
        unseen=[i for i in range(tokenizer.vocab_size) if i not in seen],
        block_size=min(config.model.block_size, shortest.stream.epoch_tokens - 1),
    )


def _overlap(store: Cache, held: list[Corpus], held_texts: Iterator[str], training: list[Corpus]) -> Overlap:
    """The overlap of validation with training text. That of a big text is kept, and found again."""

    def measure() -> Overlap:
        return overlap(held_texts, (text for corpus in training for text in beginning(corpus.texts())))

    if not any(isinstance(corpus, LargeCorpus) for corpus in training):
        return measure()
    key = digest("overlap", RUN, MOST, LOOK, [c.held_digest for c in held], [c.digest for c in training])
    return Overlap(**(store.find("overlap", key) or store.keep("overlap", key, asdict(measure()))))


def _phase_text(
    phase: Phase, shares: Sequence[_Share], replayed: Sequence[_Share], end_id: int, config: TrainConfig
) -> PhaseText:
    """The stream of one phase, with a part of each batch from the shares that are replayed."""
    seed, replay = config.run.seed, config.text.replay if replayed else 0.0
    total, old_total = sum(share.weight for share in shares), sum(share.weight for share in replayed)
    streams = [(share.weight / total * (1 - replay), TrainingStream(share.train, end_id, seed)) for share in shares]
    # another order than the one in which the earlier phase saw them
    streams += [(s.weight / old_total * replay, TrainingStream(s.train, end_id, seed, 1)) for s in replayed]
    feed: Feed = streams[0][1] if len(streams) == 1 else Mixture([s for _, s in streams], [w for w, _ in streams])
    hashes = [corpus.digest for share in shares for corpus in share.corpora]
    return PhaseText(
        phase=phase,
        stream=Prefetched(feed),
        documents=sum(len(part.train) for share in shares for part in share.encoded),
        characters=sum(part.characters[0] for share in shares for part in share.encoded),
        digest=digest(hashes, phase.weights) if phase.weights else _joined(hashes),
    )


def _joined(hashes: list[str]) -> str:
    return hashes[0] if len(hashes) == 1 else digest(hashes)


def _tokenizer(text: TextConfig, store: Cache, corpora: Sequence[Sequence[Corpus]]) -> Tokenizer:
    """The tokenizer that is asked for. One that is learnt from a big text is kept, and found again."""
    everything = list(chain(*corpora))

    def learn() -> Tokenizer:
        texts = (piece for corpus in everything for piece in corpus.texts())
        return make_tokenizer(text, texts, progress=sys.stderr.isatty())

    if text.tokenizer not in ("char", "bpe") or not any(isinstance(c, LargeCorpus) for c in everything):
        return learn()
    hashes = [corpus.digest for corpus in everything]
    size = text.vocab_size or USUAL_BPE
    folder = store.folder / "tokenizers" / digest(text.tokenizer, size, tokenizers.__version__, hashes)[:32]
    if (folder / FILE).is_file():
        return Tokenizer.load(folder)
    print(f"Learning the tokenizer ({text.tokenizer}) from the texts", flush=True)
    tokenizer = learn()
    with store.writing():
        write_tokenizer(tokenizer, folder)
    return tokenizer
