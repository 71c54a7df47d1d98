"""BPE-dropout: the same words in other pieces, so that a model learns more from little text.

Each merge that could be made next is left out with a probability, each time anew, and the first of the others is made,
until there is none (Provilkov et al. 2020, arXiv 1910.13267). The `tokenizers` library has it without a seed, so that a
run could not be repeated, and gives merges that it left out a second chance, so that its 0.1 is the paper's 0.07. Here
some segmentations of each distinct word are drawn with a seed, and its occurrences take one of them each.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mini_transformer.text.char import Tokens
from mini_transformer.text.tokenizer import Tokenizer

SEGMENTATIONS = 64  # that are drawn of a word at most; of a rare one as many as it occurs

Ranks = Mapping[tuple[str, str], int]


def segment(word: str, ranks: Ranks, dropout: float, draw: Callable[[], float]) -> list[str]:
    """The pieces of a word of byte symbols; `draw` gives numbers from 0 to 1. Without dropout it is plain BPE."""
    pieces = list(word)
    while True:
        best, at = len(ranks), -1
        for i in range(len(pieces) - 1):
            rank = ranks.get((pieces[i], pieces[i + 1]), best)
            if rank < best and draw() >= dropout:
                best, at = rank, i
        if at < 0:
            return pieces
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def noisy_copies(tokenizer: Tokenizer, texts: Sequence[str], dropout: float, copies: int, seed: int) -> list[Tokens]:
    """The tokens of all texts, in other pieces each time: first one copy of all texts, then the next.

    The tokenizer must be a byte-level BPE with merges of its own, as ours are.
    """
    model = json.loads(tokenizer.backend.to_str())["model"]
    merges = (tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"])
    ranks, ids = {merge: rank for rank, merge in enumerate(merges)}, model["vocab"]
    split = tokenizer.backend.pre_tokenizer.pre_tokenize_str
    words_of_texts = [[word for word, _ in split(text)] for text in texts]
    occurrences = Counter(word for words in words_of_texts for word in words)
    several = np.array([min(copies * times, SEGMENTATIONS) for times in occurrences.values()], dtype=np.int64)
    draw = random.Random(seed).random
    drawn = [
        segment(word, ranks, dropout, draw) for word, n in zip(occurrences, several, strict=True) for _ in range(n)
    ]
    lengths = np.array([len(pieces) for pieces in drawn], dtype=np.int64)
    starts, first = np.cumsum(lengths) - lengths, np.cumsum(several) - several
    tokens: Tokens = np.array([ids[piece] for pieces in drawn for piece in pieces], dtype=tokenizer.dtype)
    numbers = {word: i for i, word in enumerate(occurrences)}
    generator = np.random.default_rng(seed)
    found = list[Tokens]()
    for _ in range(copies):
        for words in words_of_texts:
            at = np.array([numbers[word] for word in words], dtype=np.int64)
            chosen = first[at] + generator.integers(several[at])
            # of each word the tokens from its start on: the position among all, less where the word begins among all
            ends = np.cumsum(lengths[chosen])
            shift = np.repeat(starts[chosen] - ends + lengths[chosen], lengths[chosen])
            found.append(tokens[np.arange(len(shift)) + shift])
    return found
