"""Threads that share a micro-batch against one that takes it whole."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from mini_transformer.config import ModelConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.training import passes
from mini_transformer.training.losses import cross_entropy_sum
from mini_transformer.training.optimizer import routers
from mini_transformer.training.parallel import parallelise
from mini_transformer.training.passes import Passes

ROWS = range(4, 11)


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(passes, "SHARE", 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def gradients(model: Decoder, threads: int, precision: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """The loss, the tokens that experts got, and all gradients, of two micro-batches."""
    torch.set_num_threads(threads)
    of_model = Passes(model, model, precision, cross_entropy_sum)
    assert of_model.threads == threads
    ids = torch.arange(len(ROWS) * 16).view(-1, 16) % 50
    parts = (slice(0, 5), slice(5, 7))
    losses = [of_model.backward((1, 2), ROWS[part], ids[part], ids[part], ids.numel(), True) for part in parts]
    counts = [router.tokens_per_expert for router in routers(model)]
    found = (torch.stack(losses).sum(), *counts, *(p.grad for p in model.parameters() if p.grad is not None))
    for router in routers(model):
        router.tokens_per_expert = None
    model.zero_grad(set_to_none=True)
    assert torch.get_num_threads() == threads
    return found


@pytest.mark.parametrize("experts", [1, 4])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_threads_find_the_gradients_of_one(experts: int, precision: torch.dtype) -> None:
    torch.manual_seed(0)
    config = ModelConfig(block_size=16, n_layer=2, n_embd=32, n_head=2, n_experts=experts, dropout=0.2)
    model = Decoder(config.resolve(50)).train()
    one, three = gradients(model, 1, precision), gradients(model, 3, precision)
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if precision is torch.float32 else {"rtol": 0.05, "atol": 1e-3}
    for wanted, found in zip(one, three, strict=True):
        torch.testing.assert_close(found, wanted, **tolerance)
    again = gradients(model, 3, precision)
    assert all(torch.equal(a, b) for a, b in zip(three, again, strict=True))


def test_an_error_in_a_thread_is_raised() -> None:
    torch.set_num_threads(3)
    model = Decoder(ModelConfig(block_size=16, n_layer=1, n_embd=32, n_head=2, dropout=0.0).resolve(50))
    ids = torch.zeros(3, 16, dtype=torch.int64)
    ids[2, 3] = 50
    with pytest.raises(IndexError):
        Passes(model, model, torch.float32, cross_entropy_sum).backward((0,), range(3), ids, ids, 1, True)
    assert torch.get_num_threads() == 3


def test_ranks_of_fsdp_do_not_share_rows_among_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread would find gradients that no rank exchanges."""
    torch.set_num_threads(3)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        model = Decoder(ModelConfig(block_size=16, n_layer=1, n_embd=32, n_head=2, dropout=0.0).resolve(50))
        parallel = parallelise(model, "fsdp")
        assert Passes(model, parallel, torch.float32, cross_entropy_sum).threads == 1
    finally:
        dist.destroy_process_group()
