"""Started by torchrun: some steps of a small model on all ranks.

Prints, as JSON, the bytes of a rank's tensors that go through the process group in a step, by kind, and what its memory
grows by at most, as the operating system counts it: torch's profiler does not see what gloo's threads give back.
"""

import json
import resource
import sys
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from mini_transformer.config import ModelConfig, OptimConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.runtime import rank
from mini_transformer.training.distributed import join, process_group
from mini_transformer.training.losses import cross_entropy_sum
from mini_transformer.training.optimizer import make_optimizer
from mini_transformer.training.parallel import clip_gradients, gradient_sync, parallelise

SHAPE = ModelConfig(n_layer=6, n_embd=256, n_head=4, block_size=64, n_experts=4, dropout=0.0).resolve(300)
TINY = ModelConfig(n_layer=1, n_embd=64, n_head=1, block_size=64, n_experts=2, dropout=0.0).resolve(300)
ROWS = 16


def peak_memory() -> int:
    """The largest memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def trainer(shape: ModelConfig, rows: int, parallel: str, micro_batches: int) -> Callable[[], None]:
    """A model that is trained by a step with each call."""
    model = Decoder(shape)
    module = parallelise(model, parallel)
    optimizer = make_optimizer(model, OptimConfig())
    blocks = torch.randint(shape.vocab_size, (rows, shape.block_size))

    def step() -> None:
        for i in range(micro_batches):
            with gradient_sync(module, last=i == micro_batches - 1):
                cross_entropy_sum(module, blocks, blocks)[0].backward()
        clip_gradients(model, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main(parallel: str, micro_batches: int) -> None:
    torch.set_num_threads(1)
    join()
    with process_group(torch.device("cpu"), 60.0):
        trainer(TINY, 1, parallel, micro_batches)()  # libraries take memory when they are first called
        before = peak_memory()
        step = trainer(SHAPE, ROWS, parallel, micro_batches)
        for _ in range(3):  # the first one makes the moments, and DDP's last buckets
            step()
        peak = peak_memory() - before
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
            step()
        moved = {"all_reduce": 0, "all_gather": 0, "reduce_scatter": 0}
        names = {"c10d::_allgather_base_": "all_gather", "c10d::_reduce_scatter_base_": "reduce_scatter"}
        for event in seen.events():
            if kind := names.get(event.name):  # the larger of both tensors is that of all ranks
                moved[kind] += 4 * max(shape[0] for shape in event.input_shapes[:2])
            elif event.name == "gloo:all_reduce" and parallel == "ddp":  # gloo scatters by it, too
                moved["all_reduce"] += 4 * event.input_shapes[0][0]
        if rank() == 0:
            print(json.dumps({"peak": peak, **moved}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
