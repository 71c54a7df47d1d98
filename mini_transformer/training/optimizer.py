"""AdamW for the weights, and the rule that keeps the experts evenly busy."""

import torch
from torch import nn

from mini_transformer.config import OptimConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.moe import Router


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, not to norms, sinks and biases (some biases have two axes)."""
    return parameter.ndim >= 2 and not name.endswith("bias")


def make_optimizer(model: Decoder, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) in two groups: with and without weight decay."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if decays(n, p)]
    others = [p for n, p in named if not decays(n, p)]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = named[0][1].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), fused=fused)


def routers(model: Decoder) -> list[Router]:
    """The routers of all layers that have a choice to make."""
    return [m for m in model.modules() if isinstance(m, Router) and len(m.bias) > 1]


@torch.no_grad()
def balance(model: Decoder, rate: float) -> float:
    """Move each router's bias one step towards the experts that took too few tokens, and start counting anew.

    The rule is that of Wang et al. 2024 (arXiv 2408.15664), but there the bias touches the choice alone; here it is the
    router's own, which the exported model has too. Returns the load of the busiest expert of all layers over the mean
    (1: perfectly even).
    """
    busiest = 1.0
    for router in routers(model):
        if router.tokens_per_expert is None:
            continue
        load, router.tokens_per_expert = router.tokens_per_expert.float(), None
        router.bias.add_(rate * torch.sign(load.mean() - load))
        busiest = max(busiest, (load.max() / load.mean()).item())
    return busiest
