"""What several GPUs would give, as a table by formulas (Markdown): `python benchmarks/scaling.py`.

The formulas are those of `training/plan.py`; speeds are assumed and named. Nothing here was measured on several GPUs.
"""

import torch

from mini_transformer.config import ModelConfig
from mini_transformer.training.plan import communication, flops_per_token, memory, meta_model

FLOPS = 0.4 * 989e12  # of an H100 in bfloat16, dense, at a utilisation of 40%
NVLINK, INFINIBAND = 450e9, 50e9  # bytes/s in each direction, of each GPU, inside a node of 8 and between nodes
NODE = 8
TOKENS = 100e9
BATCH_TOKENS = 1 << 20  # of an iteration: more would need more iterations to learn as much
MICRO_TOKENS = 1 << 14  # of a micro-batch, at most
MODELS = {  # with widths that every number of GPUs divides: FSDP cuts evenly only those
    "mission": ModelConfig(n_layer=24, n_embd=512, n_head=8, block_size=256, dropout=0.0),
    "300 M": ModelConfig(n_layer=24, n_embd=768, n_head=12, block_size=512, dropout=0.0),
    "1 B": ModelConfig(n_layer=32, n_embd=1280, n_head=20, block_size=1024, dropout=0.0),
}
VOCABULARY = 4096
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def row(name: str, config: ModelConfig, gpus: int, parallel: str) -> str:
    """One line: memory and times of a rank."""
    blocks = BATCH_TOKENS // config.block_size // gpus
    if not blocks:
        return f"| {name} | {gpus} | {parallel} | less than one block per GPU | | | | | | |"
    micro = min(blocks, MICRO_TOKENS // config.block_size)
    micro_batches = -(-blocks // micro)
    need = memory(config, micro, micro_batches, gpus, parallel, torch.bfloat16, "cuda").total
    compute = flops_per_token(config) * blocks * config.block_size / FLOPS
    sent = communication(config, gpus, parallel, micro_batches)
    exchange = sent / (NVLINK if gpus <= NODE else INFINIBAND)
    # DDP's exchange hides behind the backward pass (two thirds) of the last micro-batch, FSDP's behind all of a step
    hideable = compute * 2 / 3 / micro_batches if parallel == "ddp" else compute
    step = compute + max(0.0, exchange - hideable)
    days = TOKENS / (gpus * blocks * config.block_size) * step / 86400
    share = f"{compute / step:.0%}" + (" (waits)" if exchange > hideable else "")
    figures = f"{blocks} | {need / 1e9:.1f} | {sent / 1e9:.2f} | {compute * 1e3:.1f} | {exchange * 1e3:.1f}"
    return f"| {name} | {gpus} | {parallel} | {figures} | {share} | {days:.2f} |"


def main() -> None:
    """Print the table."""
    print("| model | GPUs | | blocks/GPU | GB/GPU | GB sent/step | compute, ms | exchange, ms | efficiency | days |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, shape in MODELS.items():
        config = shape.resolve(VOCABULARY)
        total, active = meta_model(config).parameter_counts()
        label = f"{name}: {total / 1e6:,.0f} M ({active / 1e6:,.0f} M active)"
        for gpus in GPUS:
            for parallel in ("none",) if gpus == 1 else ("ddp", "fsdp"):
                print(row(label, config, gpus, parallel))


if __name__ == "__main__":
    main()
