"""Which texts are kept in memory, and which are streamed into the cache."""

from collections.abc import Sequence
from pathlib import Path

from mini_transformer.data.cache import Cache
from mini_transformer.data.corpus import Corpus, HoldOut, SmallCorpus
from mini_transformer.data.large import LargeCorpus
from mini_transformer.data.records import is_remote
from mini_transformer.data.sources import (
    Document,
    Reading,
    join_pieces,
    nothing_to_learn,
    stored_files,
    stream_source,
)


def load_corpora(
    paths: Sequence[Path], reading: Reading, store: Cache, in_memory: int, hold_out: HoldOut
) -> list[Corpus]:
    """The text of some sources: together in memory where they are small, in the cache where they are not.

    Raises `UserError` if there is no text, or it cannot be read.
    """
    small: list[Document] = []
    small_paths, large = [], []
    left = in_memory
    for path in paths:
        documents = _read_if_small(path, reading, left)
        if documents is None:
            large.append(path)
        else:
            left -= sum(len(document.text) for document in documents)
            small += documents
            small_paths.append(path)
    if not small and not large:
        raise nothing_to_learn(paths)
    corpora: list[Corpus] = [SmallCorpus(small_paths, small, hold_out)] if small else []
    return corpora + [LargeCorpus(path, reading, store, hold_out) for path in large]


def _read_if_small(path: Path, reading: Reading, most: int) -> list[Document] | None:
    """All documents of a source, or None if they are more than `most` bytes (characters, where they are packed).

    What lies on the Hub is always for the cache, so that it is fetched once.
    """
    if is_remote(path) or sum(Cache.stamp(file)[0] for file in stored_files(path)) > most:
        return None
    documents, size = [], 0
    for document in join_pieces(stream_source(path, reading)):
        size += len(document.text)
        documents.append(document)
        if size > most:
            return None
    return documents
