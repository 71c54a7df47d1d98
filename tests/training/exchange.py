"""Started by torchrun: two steps of a small model on all ranks, of which the second is looked at.

Prints, as JSON, the bytes of a rank's tensors that went through the process group, by kind, and its largest memory.
"""

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from mini_transformer.config import ModelConfig, OptimConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.runtime import rank
from mini_transformer.training.distributed import join, process_group
from mini_transformer.training.losses import cross_entropy_sum
from mini_transformer.training.optimizer import make_optimizer
from mini_transformer.training.parallel import clip_gradients, gradient_sync, parallelise

SHAPE = ModelConfig(n_layer=4, n_embd=96, n_head=2, block_size=64, n_experts=4, dropout=0.0).resolve(300)
ROWS = 2


def allocations(seen: profile) -> list[int]:
    """Bytes that were taken (and given back, below 0), in the order of time."""
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]


def finish_at_once(name: str) -> None:
    """Let a collective of FSDP end before it returns: how far it lags behind else varies, and with it the memory."""
    begin = getattr(dist, name)

    def finished(*tensors: torch.Tensor, **settings: Any) -> dist.Work | None:
        if work := begin(*tensors, **settings):
            work.wait()
        return work

    setattr(dist, name, finished)


def main(parallel: str, micro_batches: int) -> None:
    torch.set_num_threads(1)
    join()
    finish_at_once("all_gather_into_tensor")
    finish_at_once("reduce_scatter_tensor")
    with process_group(torch.device("cpu"), 60.0):
        torch.manual_seed(0)
        seen = profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True)
        seen.start()  # the weights are counted, too
        model = Decoder(SHAPE)
        module = parallelise(model, parallel)
        optimizer = make_optimizer(model, OptimConfig())
        blocks = torch.randint(SHAPE.vocab_size, (ROWS, SHAPE.block_size))
        held, moved = 0, {"all_reduce": 0, "all_gather": 0, "reduce_scatter": 0}
        for step in range(3):
            if step == 2:  # the first one makes the moments, and DDP's last buckets
                seen.stop()
                held = sum(allocations(seen))
                seen = profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True)
                seen.start()
            for i in range(micro_batches):
                with gradient_sync(module, last=i == micro_batches - 1):
                    cross_entropy_sum(module, blocks, blocks)[0].backward()
            clip_gradients(model, 1.0)
            optimizer.step()
            if step < 2:
                optimizer.zero_grad(set_to_none=True)
        seen.stop()
        size = peak = held
        for bytes_ in allocations(seen):
            size += bytes_
            peak = max(peak, size)
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
