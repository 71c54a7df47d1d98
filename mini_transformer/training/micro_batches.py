"""How a rank's rows of a batch are cut into micro-batches, which fit what the device has."""

import math

import torch

from mini_transformer.config import TrainConfig
from mini_transformer.runtime import world_size
from mini_transformer.training.acceleration import accelerate
from mini_transformer.training.passes import Passes
from mini_transformer.training.plan import memory

CPU_TOKENS = 4096  # of a micro-batch: what the caches of a CPU like
GPU_SHARE = 0.8  # of a GPU's free memory, which the formulas may fill


def fitting_rows(passes: Passes, batch_size: int, parallel: str) -> int:
    """How many rows are computed at once unless it is set: what a CPU's caches like, or what a GPU has room for."""
    config, device = passes.model.config, passes.device
    if device.type == "cpu":
        tokens = max(CPU_TOKENS, CPU_TOKENS * passes.threads // 2)
        return max(1, tokens // config.block_size)
    rows, more = batch_size, (world_size(), parallel, passes.precision, device.type)
    if device.type == "cuda":
        room = GPU_SHARE * torch.cuda.mem_get_info(device)[0]
        while rows > 1 and memory(config, rows, 2, *more).total > room:
            rows = math.ceil(rows / 2)
    return rows


def cut(own: int, batch_size: int, rows: int) -> list[slice]:
    """Parts of about so many of a rank's `own` rows: as many on each rank, for FSDP; one row more goes along."""
    count = math.ceil(batch_size // world_size() / min(own, rows))
    return [slice(own * i // count, own * (i + 1) // count) for i in range(count)]


def prepare(passes: Passes, config: TrainConfig, own: int, rows: int) -> list[slice]:
    """Cut a rank's `own` rows, and make their passes fast. Where memory does not suffice, parts are halved."""
    while True:
        parts = cut(own, config.optim.batch_size, rows)
        sizes = [part.stop - part.start for part in parts]
        passes_in_all = len(parts) * sum(phase.iters for phase in config.phases)
        try:
            accelerate(passes, sizes, passes.model.config.block_size, config.run.compile, passes_in_all)
            return parts
        except torch.OutOfMemoryError:
            if config.run.micro_batch_size or max(sizes) == 1 or world_size() > 1:
                raise
        passes.forget()
        rows = math.ceil(max(sizes) / 2)
