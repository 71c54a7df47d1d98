"""Tokens that are split into those that they were merged from."""

import numpy as np
import pytest
import torch

from mini_transformer.data.segmentation import ROWS, UNTIL, BpeDropout, undo_merges
from mini_transformer.text.tokenizer import Tokenizer
from tests.conftest import FABLES

TEXT = FABLES.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_bpe([TEXT], 600)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_the_text_stays_the_same(tokenizer: Tokenizer, fraction: float) -> None:
    tokens = tokenizer.encode(TEXT).astype(np.int64)
    found = undo_merges(tokens, tokenizer.merged_from(), fraction, np.random.default_rng(0))
    assert tokenizer.decode(found.tolist()) == TEXT
    assert len(found) > len(tokens)
    if fraction == 1:  # down to bytes
        assert len(found) == len(TEXT.encode())


def test_as_many_merges_are_undone_as_asked_for(tokenizer: Tokenizer) -> None:
    merged_from = tokenizer.merged_from()
    tokens = np.full(100_000, next(i for i in range(600) if merged_from[i].max() > 256))  # of three bytes or more
    whole = undo_merges(tokens, merged_from, 0.2, np.random.default_rng(1)) == tokens[0]
    assert whole.sum() == pytest.approx(80_000, rel=0.01)


def test_tokens_that_were_not_merged_have_no_parts(tokenizer: Tokenizer) -> None:
    pairs = tokenizer.merged_from()
    assert (pairs[:257] == -1).all()  # <|endoftext|> and the bytes
    assert (pairs[257:] >= 0).all()
    for i in range(257, 600):
        assert b"".join(tokenizer.bytes_of(part) for part in pairs[i].tolist()) == tokenizer.bytes_of(i)


def test_half_of_the_rows_change_until_the_last_part_whatever_the_share_of_a_rank(tokenizer: Tokenizer) -> None:
    tokens = torch.from_numpy(tokenizer.encode(TEXT)[: 64 * 33].astype(np.int64)).view(64, 33)
    inputs_bt, targets_bt = tokens[:, :-1], tokens[:, 1:]
    dropout = BpeDropout(tokenizer, 0.3)
    changed, next_ones = dropout(inputs_bt, targets_bt, 0.1, (1, 0, 5), range(64))
    assert torch.equal(changed[:, 1:], next_ones[:, :-1])
    assert (changed != inputs_bt).any(1).float().mean().item() == pytest.approx(ROWS, abs=0.2)
    for row in range(64):  # what is there is the beginning of the same text
        before, after = (tokenizer.decode(part[row].tolist()) for part in (inputs_bt, changed))
        assert before.startswith(after.rstrip("\ufffd"))
    for rows in (range(10), range(10, 64)):
        part = slice(rows.start, rows.stop)
        found, _ = dropout(inputs_bt[part], targets_bt[part], 0.1, (1, 0, 5), rows)
        assert torch.equal(found, changed[part])
    assert not torch.equal(dropout(inputs_bt, targets_bt, 0.1, (1, 0, 6), range(64))[0], changed)
    for unchanged in (dropout, BpeDropout(tokenizer, 0.0)):
        progress = UNTIL if unchanged is dropout else 0.1
        assert torch.equal(unchanged(inputs_bt, targets_bt, progress, (1, 0, 5), range(64))[0], inputs_bt)
