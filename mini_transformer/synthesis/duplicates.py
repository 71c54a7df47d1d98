"""Texts that were there before, word for word or nearly: MinHash over runs of three words (`datasketch`)."""

from datasketch import MinHash, MinHashLSH

from mini_transformer.data.words import word_runs, words

RUN = 3  # words
THRESHOLD = 0.5  # share of common runs (Jaccard) from which two texts are nearly the same
PERMUTATIONS = 128


class Deduplicator:
    """The texts kept so far."""

    def __init__(self) -> None:
        self._exact: set[tuple[str, ...]] = set()
        self._near = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
        self._hashes: list[MinHash] = []

    def add(self, text: str) -> str | None:
        """Remember a text, or give the reason to reject it: it was there before, or one much like it."""
        found = tuple(words(text))
        if found in self._exact:
            return "duplicate"
        hashed = MinHash(num_perm=PERMUTATIONS, seed=1)
        hashed.update_batch([run.encode() for run in sorted(word_runs(text, RUN) or {" ".join(found)})])
        # The index gives candidates; their hashes tell how alike they are.
        if any(hashed.jaccard(self._hashes[place]) >= THRESHOLD for place in self._near.query(hashed)):
            return "near-duplicate"
        self._near.insert(len(self._hashes), hashed)
        self._hashes.append(hashed)
        self._exact.add(found)
        return None
