"""Compiled blocks and CUDA graphs against plain passes."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mini_transformer.config import ModelConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.training import acceleration
from mini_transformer.training.acceleration import accelerate, distance, measure, moved_by_rounding, proved, twice
from mini_transformer.training.checkpoint import Checkpoints
from mini_transformer.training.losses import cross_entropy_sum
from mini_transformer.training.optimizer import routers
from mini_transformer.training.passes import Passes


def test_a_fast_way_that_finds_something_else_is_not_taken(capsys: pytest.CaptureFixture[str]) -> None:
    plain = (3.0, [torch.ones(4), torch.ones(2)])
    assert proved("compiled", lambda: (3.001, [torch.ones(4) * 1.01, torch.ones(2)]), plain)
    assert not proved("compiled", lambda: (3.2, [torch.ones(4), torch.ones(2)]), plain)
    assert not proved("compiled", lambda: (3.0, [torch.ones(4), torch.zeros(2)]), plain)
    assert not proved("compiled", lambda: (float("nan"), [torch.ones(4), torch.ones(2)]), plain)

    def fails() -> acceleration.Found:
        raise RuntimeError("no such kernel\nmore")

    assert not proved("recorded as CUDA graphs", fails, plain)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1] == "Not recorded as CUDA graphs; the run goes on without (RuntimeError: no such kernel)"


@pytest.mark.parametrize(("precision", "least", "most"), [(torch.float32, 0, 1e-4), (torch.bfloat16, 1e-3, 0.2)])
def test_rounding_moves_gradients_and_leaves_the_weights_alone(
    precision: torch.dtype, least: float, most: float
) -> None:
    torch.manual_seed(0)
    model = Decoder(ModelConfig(block_size=64, n_layer=2, n_embd=64, n_head=4, dropout=0.2).resolve(50)).train()
    passes, ids = Passes(model, model, precision, cross_entropy_sum), torch.randint(50, (4, 64))
    before = copy.deepcopy(model.state_dict())
    plain = measure(passes, ids)[0]
    assert least < moved_by_rounding(passes, ids, plain) < most
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert distance(twice(passes, ids)[1], plain[1]) < 1e-5


def test_a_way_that_is_not_the_same_twice_is_not_taken() -> None:
    model = Decoder(ModelConfig(block_size=16, n_layer=1, n_embd=32, n_head=2).resolve(50))
    passes, ids = Passes(model, model, torch.float32, cross_entropy_sum), torch.randint(50, (2, 16))
    noisy = iter(range(1, 9))
    model.lm_head.weight.register_hook(lambda gradient: gradient * next(noisy))
    with pytest.raises(RuntimeError, match="gradients of the same batch are"):
        twice(passes, ids)


def test_a_cpu_says_why_it_does_not_compile(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    model = Decoder(ModelConfig(block_size=16, n_layer=1, n_embd=32, n_head=2).resolve(50))
    accelerate(Passes(model, model, torch.float32, cross_entropy_sum), [2], 16, "on", 100)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("compile", ["off", "on"])
def test_fast_passes_on_cuda_find_what_plain_ones_do(precision: torch.dtype, compile: str) -> None:
    torch.manual_seed(0)
    model = Decoder(ModelConfig(block_size=64, n_layer=2, n_embd=64, n_head=4, dropout=0.2).resolve(50)).cuda().train()
    fast, plain = (Passes(m, m, precision, cross_entropy_sum) for m in (model, copy.deepcopy(model)))
    accelerate(fast, [5, 3], 64, compile, 0)
    assert set(fast.graphs) == {(5, 64), (3, 64)}
    assert fast.compiled == (compile == "on")
    ids = torch.randint(50, (2, 5, 64))
    for rows in (5, 3, 5):
        found = []
        for passes in (fast, plain):
            passes.zero_grad()
            for seed in (1, 2):  # gradients add up
                loss = passes.backward((seed,), range(rows), ids[0, :rows], ids[1, :rows], ids[0].numel(), True)
            counts = torch.stack([r.tokens_per_expert for r in routers(passes.model)])  # type: ignore[misc]
            found.append((loss, counts, [p.grad.clone() for p in passes.parameters]))
        (loss, counts, gradients), (loss_plain, counts_plain, gradients_plain) = found
        assert loss.item() == pytest.approx(loss_plain.item(), rel=1e-3)
        assert counts.sum() == counts_plain.sum() == 2 * 2 * 2 * rows * 64
        if precision is torch.bfloat16:  # a rounded logit may choose another expert
            gradients, gradients_plain = ([torch.cat([g.flatten() for g in of])] for of in (gradients, gradients_plain))
        for a, b in zip(gradients, gradients_plain, strict=True):
            assert (a - b).norm() <= (0.05 if precision is torch.bfloat16 else 1e-3) * b.norm() + 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("compile", ["off", "on"])
def test_a_run_on_cuda_learns_and_goes_on(
    call: Callable[..., tuple[int, str, str]],
    fables: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compile: str,
) -> None:
    monkeypatch.setattr(Checkpoints, "is_due", lambda _: True)
    flags = "--n-layer 2 --n-embd 64 --n-head 2 --block-size 64 --batch-size 8 --max-iters 60 --eval-interval 20"
    flags += f" --lr 3e-3 --compile {compile} --checkpoint-interval 20 --device cuda --keep-checkpoints --keep 9"
    out = tmp_path / "out"
    words = ["train", "--data", fables, "--out-dir", out, *flags.split()]
    code, told, error = call(*words)
    assert code == 0, error
    assert "without" not in told
    losses = [json.loads(line).get("val_loss") for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss]
    assert losses[-1] < losses[0] - 0.5
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"finished": False}))
    newest = sorted((out / "checkpoints").iterdir())
    assert len(newest) == 3
    newest[-1].unlink()  # the end is lost, and done again
    code, told, _ = call(*words)
    assert code == 0
    assert "Resuming from the checkpoint at" in told
