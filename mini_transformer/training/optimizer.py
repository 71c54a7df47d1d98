"""The optimizer of the weights, and the rule that balances the experts."""

import torch
from torch import nn

from mini_transformer.config import OptimConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.moe import Router
from mini_transformer.training.distributed import sum_over_ranks
from mini_transformer.training.muon import MOMENTUM, Muon
from mini_transformer.training.parallel import add_to


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, not to norms, sinks and biases (some biases have two axes)."""
    return parameter.ndim >= 2 and not name.endswith("bias")


def in_muon(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon takes it: the matrices of attention and experts, not embeddings, head and routers."""
    return decays(name, parameter) and "_proj" in name


def make_optimizer(model: Decoder, config: OptimConfig, precision: torch.dtype = torch.float32) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), with and without weight decay; with Muon if that is wanted.

    `precision`: of Muon's products; weights and moments are float32.
    """
    named = list(model.named_parameters())
    muon = {n: p for n, p in named if config.optimizer == "muon" and in_muon(n, p)}
    matrices = [p for n, p in named if decays(n, p) and n not in muon]
    others = [p for n, p in named if not decays(n, p)]
    assert len({id(p) for p in matrices + others}) == len(matrices) + len(others) == len(named) - len(muon)
    decay = config.weight_decay
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    fused = named[0][1].device.type in ("cpu", "cuda")
    if not muon:
        return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), fused=fused)
    groups.append({"params": list(muon.values()), "weight_decay": decay, "momentum": MOMENTUM})
    return Muon(groups, precision, lr=0.0, betas=(config.beta1, config.beta2), fused=fused)


def routers(model: Decoder) -> list[Router]:
    """The routers of all layers that have a choice to make."""
    return [m for m in model.modules() if isinstance(m, Router) and len(m.bias) > 1]


@torch.no_grad()
def update_router_bias(model: Decoder, rate: float) -> list[list[float]]:
    """Move each router's bias one step towards the experts that got too few tokens, and reset the counts.

    The rule is that of Wang et al. 2024 (arXiv 2408.15664), but there the bias affects the choice alone; here it is the
    router's own, which the exported model has too. Returns the load of each expert in each layer, relative to the mean
    (1: perfectly balanced), to three digits; nothing for a dense model.
    """
    counts = {router: router.tokens_per_expert for router in routers(model) if router.tokens_per_expert is not None}
    if not counts:
        return []
    load_le = sum_over_ranks(torch.stack(list(counts.values()))).float()
    for router, load_e in zip(counts, load_le, strict=True):
        counts[router].zero_()
        add_to(router.bias, rate * torch.sign(load_e.mean() - load_e))
    return [[round(load, 3) for load in layer] for layer in (load_le / load_le.mean(1, keepdim=True)).tolist()]
