"""What a step needs, by formulas from the shape: memory, communication, floating-point operations.

The counts of weights, gradients and optimizer are exact (of AdamW; Muon has less). Activations are what autograd keeps
of the code as it is, counted operation by operation for a CPU; `tests/training/test_plan.py` holds them against
torch's own profiler. On a GPU they are an estimate. Letters as in the model: T tokens of a block, C channels, Q heads
times head size, F hidden size of an expert, K experts per token, E experts, V vocabulary.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from mini_transformer.config import ModelConfig
from mini_transformer.model.decoder import Decoder, meta_decoder
from mini_transformer.model.fused.experts import CHUNK, GRAIN
from mini_transformer.model.fused.loss import LOGITS
from mini_transformer.training.parallel import shard_axis

FLOAT = 4  # bytes of float32: weights, gradients, moments, and all that the ranks exchange


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of one rank, at the peak of a step."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float  # under FSDP: the layers that are whole for the moment, with their gradients
    activations: float
    best_weights: float  # their copy; 0 where it lies in the memory of the host instead

    @property
    def total(self) -> float:
        """All of it. PyTorch itself, some hundred megabytes, comes on top."""
        return sum(vars(self).values())


@cache
def meta_model(config: ModelConfig) -> Decoder:
    """A model with shapes and no values, to count with; any size costs nothing."""
    return meta_decoder(config)


def shard_size(module: nn.Module, ranks: int) -> int:
    """Parameters of a module that a rank stores under FSDP: its part of each, the fullest rank's."""
    total = 0
    for p in module.parameters():
        along = p.shape[shard_axis(p.shape, ranks)]
        total += p.numel() // along * math.ceil(along / ranks)
    return total


def memory(
    config: ModelConfig,
    micro_batch_size: int,
    micro_batches: int = 1,
    world_size: int = 1,
    parallel: str = "none",
    precision: torch.dtype = torch.float32,
    device: str = "cpu",
    shares: int = 1,
) -> Memory:
    """The memory of one rank that computes so many micro-batches per step; `config` is a resolved one.

    `shares`: the threads that take part in a micro-batch, each with gradients of its own.
    """
    model = meta_model(config)
    whole = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    layer = sum(p.numel() for p in model.layers[0].parameters())
    stored, stored_trained, gathered = whole, trained, 0
    if parallel == "fsdp":
        stored = shard_size(model, world_size)
        stored_trained = stored - (whole - trained)  # the router of one expert is a few numbers
        # embeddings and head stay whole for all of the step; a layer, the one fetched ahead, and a gradient sent off
        gathered = whole - config.n_layer * layer + 3 * layer
    # without an exchange after each micro-batch, gradients add up whole, beside DDP's buckets or FSDP's parts
    adding_up = trained if parallel != "none" and micro_batches > 1 else trained * (shares - 1)
    tokens = micro_batch_size * config.block_size
    saved = activations(config, micro_batch_size, precision, device)
    gradients: float = FLOAT * (stored_trained + adding_up)
    if parallel == "fsdp":  # the parts come to be in the last backward pass, while what it needs goes
        gradients = max(FLOAT * adding_up, FLOAT * stored_trained - saved)
    if device == "cpu":
        # the gradients of a layer, what its experts hand on, what one of them works on; or the logits
        passed_on = tokens * config.n_embd * (3 * FLOAT + config.experts_per_token * precision.itemsize)
        part = 5 * precision.itemsize * min(tokens, CHUNK) * config.expert_hidden
        head = 2 * min(tokens * config.vocab_size, LOGITS) + 2 * tokens * config.n_embd
        working = max(FLOAT * layer + passed_on + part, FLOAT * head)
    else:
        # at the end of the forward pass: logits, and the gradient on its way through the softmax. In the backward pass:
        # the gradients of a layer's experts, each of them as large as all
        working = max(8 * tokens * config.vocab_size, (2 if config.n_experts > 1 else 1) * FLOAT * layer)
    copies = 2 * (whole - config.vocab_size * config.n_embd) if precision is torch.bfloat16 else 0  # of the matrices
    return Memory(
        weights=FLOAT * stored,
        gradients=gradients,
        optimizer=2 * FLOAT * stored_trained,
        gathered=FLOAT * gathered,
        activations=saved + working + copies,
        best_weights=FLOAT * stored if device == "cpu" or parallel == "fsdp" else 0,
    )


def activations(config: ModelConfig, micro_batch_size: int, precision: torch.dtype, device: str) -> float:
    """Bytes that a forward pass keeps for the backward pass."""
    C, Q, V = config.n_embd, config.n_head * config.head_dim, config.vocab_size
    F, K, E, T = config.expert_hidden, config.experts_per_token, config.n_experts, config.block_size
    size = precision.itemsize  # of a product; the residual stream and norms are float32
    if device == "cpu":  # `model.fused` computes the blocks
        mask, experts = C if config.dropout else 0, E > 1
        attention = C + mask + 1 + 2 * Q + 2 * config.n_kv_head * config.head_dim + config.n_head
        mixture = (
            C + mask + 1 + (7 * K if experts else 0)
        )  # the number of an expert, its row, the row's token, its weight
        per_token: float = FLOAT * (config.n_layer * (attention + mixture) + mask + C)
        # gate, up and output of each expert, whose rows are filled up to a multiple of GRAIN
        rows = K + E * GRAIN / 2 / (micro_batch_size * T) if experts else K
        per_token += config.n_layer * rows * size * (2 * F + (C if experts else 0))
        # the gradient of the head; the weights of q, k and v in one, unless they are among the copies in bfloat16
        kept = V * C + (config.n_layer * C * (Q + 2 * config.n_kv_head * config.head_dim) if size == FLOAT else 0)
        return micro_batch_size * T * per_token + FLOAT * kept
    mask = C if config.dropout else 0
    norm = 4 * C  # its input
    attention = 5 * size * Q + 4 * config.n_head  # q, k, v, output, the same for o_proj; log-sum-exp
    # outputs of the two norms: in bfloat16 each product that takes them has a copy of its own
    inputs = 8 * C if size == 4 else 6 * C + (4 * C if E > 1 else 2 * C)
    expert = size * (7 * F + (2 * C if E > 1 else 0))  # gate and up, each clamped, sigmoid, products; rows, outputs
    routing = 28 * K if E > 1 else 0  # int64 orders and indices, weights
    layer = 2 * norm + 2 * size * mask + attention + inputs + K * expert + routing + 8
    head = 4 * mask + norm + size * C + 4 * V  # of the embeddings; the last norm; log p
    total: float = micro_batch_size * T * (config.n_layer * layer + head)
    scores = config.n_head * T * (T + 1)
    if (
        device == "cuda" and size == 4
    ):  # no flash kernel: the bias that holds the sinks, for each layer; its gradient, for each row, in one
        total += size * scores * (config.n_layer + micro_batch_size)
    elif device == "mps":  # no flash kernel: probabilities
        total += size * scores * micro_batch_size * config.n_layer
    return total


def communication(config: ModelConfig, world_size: int, parallel: str, micro_batches: int = 1) -> float:
    """Bytes that each rank sends in a step, and receives, by rings; losses, norms and loads are too small to count.

    DDP adds up all gradients once. FSDP gathers each layer for each pass of each micro-batch, embeddings and head once
    for both, and adds up all gradients to parts.
    """
    model = meta_model(config)
    share = (world_size - 1) / world_size
    if parallel == "none":
        return 0.0
    if parallel == "ddp":
        return 2 * share * FLOAT * sum(p.numel() for p in model.parameters() if p.requires_grad)
    padded = FLOAT * world_size * shard_size(model, world_size)
    layers = FLOAT * world_size * shard_size(model.layers, world_size)
    return share * (micro_batches * (padded + layers) + padded)


def flops_per_token(config: ModelConfig) -> float:
    """Floating-point operations of forward and backward pass: 6 for each active weight, and those of attention."""
    active = meta_model(config).parameter_counts()[1] - config.vocab_size * config.n_embd  # a look-up costs nothing
    return 6 * active + 6 * config.n_layer * config.n_head * config.head_dim * config.block_size
