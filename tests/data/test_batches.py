import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_transformer.data.batches import TrainingStream, join_documents, validation_batches
from mini_transformer.text.tokenizer import Tokens

END = 0


def some_documents(lengths: list[int]) -> list[Tokens]:
    """Documents whose tokens are all different, and none of them END."""
    ends = np.cumsum(lengths)
    return [np.arange(end - n + 1, end + 1, dtype=np.uint32) for n, end in zip(lengths, ends, strict=True)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99))
def test_an_epoch_shows_each_token_once(lengths: list[int], batch: int, block: int, seed: int) -> None:
    documents = some_documents(lengths)
    stream = TrainingStream(documents, END, seed)
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
        assert epoch[0] == END
        assert sorted(epoch) == sorted([END] * len(lengths) + list(range(1, sum(lengths) + 1)))


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    documents = some_documents([7, 19, 3, 11, 2])
    ahead, behind = TrainingStream(documents, END, 1), TrainingStream(documents, END, 1)
    forward = [ahead.batch(i, 3, 8)[1].tolist() for i in range(20)]
    backward = [behind.batch(i, 3, 8)[1].tolist() for i in reversed(range(20))]
    assert forward == backward[::-1]
    assert forward != [TrainingStream(documents, END, 2).batch(i, 3, 8)[1].tolist() for i in range(20)]


def test_documents_are_shuffled_anew() -> None:
    stream = TrainingStream(some_documents([5] * 12), END, 3)
    first, second = stream.batch(0, 1, 72)[0], stream.batch(1, 1, 72)[0]
    assert first.tolist() != second.tolist()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 4), st.integers(1, 12))
def test_validation_predicts_each_token_once(lengths: list[int], batch: int, block: int) -> None:
    tokens = join_documents(some_documents(lengths), END)
    targets = [t for _, ts in validation_batches(tokens, batch, block, 10**9) for t in ts.flatten().tolist()]
    assert targets == tokens[1:].tolist()
    assert len(list(validation_batches(tokens, batch, block, 2))) <= 2
