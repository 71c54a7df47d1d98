import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_transformer.data.stream import (
    BatchSource,
    Mixture,
    TokenDocuments,
    TokenStream,
    TrainingStream,
    rows_of,
    validation_batches,
)

EOT = 0


def some_documents(lengths: list[int]) -> TokenDocuments:
    """Documents whose tokens are all different, and none of them EOT."""
    rows = np.array(lengths)[:, None].repeat(3, axis=1)
    return TokenDocuments.of(np.arange(1, sum(lengths) + 1, dtype=np.uint32), rows)


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99))
def test_an_epoch_shows_each_token_once(lengths: list[int], batch: int, block: int, seed: int) -> None:
    documents = some_documents(lengths)
    stream = TrainingStream(documents, EOT, seed)
    total = sum(lengths) + len(lengths)
    assert stream.epoch_tokens == total
    shown: list[int] = []
    number = 0
    while len(shown) < 2 * total:
        inputs, targets = stream.batch(number, batch, block)
        assert inputs.shape == targets.shape == (batch, block)
        flat = inputs.flatten().tolist()
        assert flat[1:] == targets.flatten().tolist()[:-1]
        shown += flat
        number += 1
    for epoch in (shown[:total], shown[total : 2 * total]):
        assert epoch[0] == EOT
        assert sorted(epoch) == sorted([EOT] * len(lengths) + list(range(1, sum(lengths) + 1)))


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    documents = some_documents([7, 19, 3, 11, 2])
    ahead, behind = TrainingStream(documents, EOT, 1), TrainingStream(documents, EOT, 1)
    forward = [ahead.batch(i, 3, 8)[1].tolist() for i in range(20)]
    backward = [behind.batch(i, 3, 8)[1].tolist() for i in reversed(range(20))]
    assert forward == backward[::-1]
    assert forward != [TrainingStream(documents, EOT, 2).batch(i, 3, 8)[1].tolist() for i in range(20)]


def test_documents_are_shuffled_anew() -> None:
    stream = TrainingStream(some_documents([5] * 12), EOT, 3)
    first, second = stream.batch(0, 1, 72)[0], stream.batch(1, 1, 72)[0]
    assert first.tolist() != second.tolist()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 4), st.integers(1, 12))
def test_validation_predicts_each_token_once(lengths: list[int], batch: int, block: int) -> None:
    documents = some_documents(lengths)
    joined = [EOT, *(token for document in documents for token in (*document.tolist(), EOT))]
    tokens = TokenStream(documents, EOT)
    assert tokens.read(0, len(tokens)).tolist() == joined
    targets = [t for _, ts, _ in validation_batches(tokens, batch, block, 10**9) for t in ts.flatten().tolist()]
    assert targets == joined[1:]
    assert len(list(validation_batches(tokens, batch, block, 2))) <= 2


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 9))
def test_ranks_share_each_batch_without_overlap(lengths: list[int], batch: int, ranks: int, block: int) -> None:
    streams = [TrainingStream(some_documents(lengths), EOT, seed) for seed in (1, 2)]
    for source in (streams[0], Mixture(streams, [0.7, 0.3])):
        for number in (0, 3):
            whole = source.batch(number, batch, block)
            parts = [source.batch(number, batch, block, rank, ranks) for rank in range(ranks)]
            for i in (0, 1):
                assert torch.equal(torch.cat([part[i] for part in parts]), whole[i])
        owned = [row for rank in range(ranks) for row in rows_of(rank, ranks, batch)]
        assert owned == list(range(batch))


@settings(deadline=None)
@given(st.lists(st.floats(0.05, 1.0), min_size=2, max_size=4), st.integers(0, 5000))
def test_a_mixture_keeps_its_shares_and_skips_nothing(weights: list[float], row: int) -> None:
    streams = [TrainingStream(some_documents([50]), EOT, 0) for _ in weights]
    mixture = Mixture(streams, weights)
    places = [mixture.place(i) for i in range(row + 1)]
    for stream, weight in enumerate(weights):
        rows = [there for chosen, there in places if chosen == stream]
        assert rows == list(range(len(rows)))  # each row of each stream once, in order
        assert abs(len(rows) - (row + 1) * weight / sum(weights)) <= len(weights) + (row + 1) / 1000


def test_saved_and_restored_mid_epoch_the_next_hundred_batches_are_the_same() -> None:
    documents = some_documents([700, 19, 333, 1100, 2] * 20)
    end = int(documents[-1][-1])
    weights = [0.6, 0.4]

    def sources() -> list[BatchSource]:
        first = np.arange(len(documents)) < 50
        halves = [TrainingStream(documents.take(part), EOT, 5) for part in (first, ~first)]
        return [TrainingStream(documents, EOT, 5), Mixture(halves, weights)]

    for one, other in zip(sources(), sources(), strict=True):
        running = one
        for number in range(37):
            running.batch(number, 4, 32)
        state = 37  # all there is
        for number in range(state, state + 100):
            expected = running.batch(number, 4, 32)
            found = other.batch(number, 4, 32)
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1], expected[1])
            assert expected[0].max() <= end
