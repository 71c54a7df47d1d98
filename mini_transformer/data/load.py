"""Which texts are kept in memory, and which are streamed into the cache."""

from collections.abc import Sequence
from pathlib import Path

from mini_transformer.data.cache import Cache
from mini_transformer.data.corpus import Corpus, HoldOut, SmallCorpus
from mini_transformer.data.large import LargeCorpus
from mini_transformer.data.sources import Document, Reading, join_pieces, nothing_to_learn
from mini_transformer.data.stored import Sources


def load_corpus(paths: Sequence[Path], reading: Reading, store: Cache, in_memory: int, hold_out: HoldOut) -> Corpus:
    """The text of some sources: in memory if it is small, else in the cache. Which of both changes nothing else.

    Raises `UserError` if there is no text, or it cannot be read.
    """
    sources = Sources(paths, reading, store)
    documents = _read_if_small(sources, in_memory)
    if documents is None:
        return LargeCorpus(sources, hold_out)
    if not documents:
        raise nothing_to_learn(paths)
    return SmallCorpus(sources.content(remember=False), documents, hold_out)


def _read_if_small(sources: Sources, most: int) -> list[Document] | None:
    """All documents, or None if they are more than `most` bytes (characters, where they are packed).

    What lies on the Hub is always for the cache, so that it is fetched once.
    """
    if sources.remote or sources.size > most:
        return None
    documents, size = [], 0
    for document in join_pieces(sources.stream()):
        size += len(document.text)
        documents.append(document)
        if size > most:
            return None
    return documents
