"""The two ways in which ranks share a model: each has a copy of it (DDP), or a part of each of its weights (FSDP2).

DDP: DistributedDataParallel, Li et al. 2020 (arXiv 2006.15704). FSDP: `fully_shard`, after Zhao et al. 2023 (arXiv
2304.11277). Both average gradients during the backward pass; here they are to be summed, since the loss is divided by
the number of tokens on all ranks already.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from mini_transformer.model.decoder import Decoder
from mini_transformer.runtime import world_size

STATE_BYTES = 16  # per parameter: weight, gradient and the optimizer's two moments, float32
SHARE = 0.6  # of a device's memory that they may take; the rest is for activations


def pick_parallel(wanted: str, parameters: int, device: torch.device) -> str:
    """`ddp` as long as weights, gradients and optimizer fit the memory of one GPU, else `fsdp`; `none` on one rank."""
    if wanted == "fsdp" or (wanted == "ddp" and world_size() > 1):
        return wanted
    if world_size() == 1:
        return "none"
    if device.type == "cuda" and parameters * STATE_BYTES > SHARE * torch.cuda.mem_get_info(device)[1]:
        return "fsdp"
    return "ddp"


def parallelise(model: Decoder, kind: str) -> nn.Module:
    """The module whose forward pass trains the model on all ranks; with `none` the model itself.

    With `fsdp` the model's own parameters become parts of the whole ones (`DTensor`).
    """
    if kind == "fsdp":
        for part in (*model.layers, model):
            fully_shard(part, shard_placement_fn=lambda p: Shard(shard_axis(p.shape, world_size())))
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo has no other
        return model
    if kind == "none":
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # later versions have another word for broadcast_buffers
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def shard_axis(shape: Sequence[int], ranks: int) -> int:
    """The axis along which FSDP cuts a parameter: the first that all ranks divide, or else 0, padded.

    Cut along their number, four experts would lie on four of eight ranks, and be padded to eight in each exchange.
    """
    return next((axis for axis, length in enumerate(shape) if length % ranks == 0), 0)


def gradient_scale(module: nn.Module) -> int:
    """What a loss is multiplied by before its backward pass, so that the gradients of all ranks are summed."""
    return world_size() if isinstance(module, DistributedDataParallel) else 1


@contextmanager
def gradient_sync(module: nn.Module, last: bool) -> Iterator[None]:
    """Forward and backward pass of a micro-batch: gradients are exchanged after the last one of a step only."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients down to a norm; returns their norm before (a scalar)."""
    return whole(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights: on the CPU, or under FSDP of each rank's parts, where they are."""
    return {
        name: tensor.detach().clone() if isinstance(tensor, DTensor) else tensor.detach().to("cpu", copy=True)
        for name, tensor in model.state_dict().items()
    }


def gather(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors from the parts that the ranks have; they must all call this."""
    return {name: whole(tensor) for name, tensor in state.items()}


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each rank may have a part; they must all call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def add_to(parameter: Tensor, delta: Tensor) -> None:
    """`parameter += delta`, where each rank has all of delta, and perhaps only its part of the parameter."""
    if isinstance(parameter, DTensor):
        everywhere = DTensor.from_local(delta, parameter.device_mesh, run_check=False)
        delta = everywhere.redistribute(placements=parameter.placements)
    parameter.add_(delta)
