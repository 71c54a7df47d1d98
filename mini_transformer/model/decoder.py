"""The decoder: GPT-OSS to the letter, so that a trained folder opens wherever GPT-OSS models do.

Axes: B batch, T tokens, C channels, V vocabulary. Parameter names are those of `GptOssForCausalLM` in `transformers`,
less the leading "model.".
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from mini_transformer.config import ModelConfig
from mini_transformer.model import fused
from mini_transformer.model.attention import Attention, KVCache
from mini_transformer.model.dropout import RowDropout
from mini_transformer.model.moe import MixtureOfExperts
from mini_transformer.model.rotary import rotary_table


class Block(nn.Module):
    """One layer, (B, T, C) to (B, T, C): attention, then experts, each after a norm and added to the stream.

    RMSNorm is x / rms(x) * weight (Zhang and Sennrich 2019, arXiv 1910.07467); x is float32 under autocast too.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = MixtureOfExperts(config)
        self.attention_dropout, self.expert_dropout = RowDropout(config.dropout), RowDropout(config.dropout)

    def forward(
        self, x_btc: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None = None, fast: bool = False
    ) -> Tensor:
        if fast:
            return self.fused(x_btc, rotary)
        x_btc = x_btc + self.attention_dropout(self.self_attn(self.input_layernorm(x_btc), rotary, cache))
        return x_btc + self.expert_dropout(self.mlp(self.post_attention_layernorm(x_btc)))

    def fused(self, x_btc: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """The same without a cache, equal to rounding; see `model.fused`."""
        attention, router, experts = self.self_attn, self.mlp.router, self.mlp.experts
        projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        weights = [parameter for projection in projections for parameter in (projection.weight, projection.bias)]
        norm = self.input_layernorm
        more = (rotary, attention.window, norm.eps, norm.weight, *weights, attention.sinks)
        x_btc = fused.apply(fused.AttentionHalf, x_btc, self.attention_dropout.mask(x_btc), *more)
        norm = self.post_attention_layernorm
        more = (norm.eps, router.experts_per_token, norm.weight, router.weight, router.bias, *experts.parameters())
        x_btc, counts_e = fused.apply(fused.ExpertsHalf, x_btc, self.expert_dropout.mask(x_btc), *more)
        router.count(counts_e)
        return x_btc


@torch.no_grad()
def round_matrices(model: nn.Module) -> None:
    """Round all matrices, those of the experts too, to what bfloat16 holds."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.endswith("bias"):
            parameter.copy_(parameter.bfloat16())


def plain_block(block: nn.Module, x_btc: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """A block without a cache."""
    return block(x_btc, rotary)


def plain_head(norm: nn.Module, lm_head: nn.Module, x_btc: Tensor, targets_bt: Tensor) -> Tensor:
    """The sum of -log p of the targets, in nats and float32."""
    logits_nv = lm_head(norm(x_btc)).float().flatten(0, 1)
    return cross_entropy(logits_nv, targets_bt.flatten(), reduction="sum")


class Decoder(nn.Module):
    """The whole model: token ids (B, T) to logits (B, T, V), or to the loss of targets (B, T)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.dropout = RowDropout(config.dropout)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.run_block, self.run_head = plain_block, plain_head  # `training.acceleration` may put compiled ones here
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        if not self.lm_head.weight.is_meta:
            self.compute_rotary()
            self.initialise()

    def compute_rotary(self) -> None:
        """Fill the tables of the rotary positions, which are no weights: a model made on the meta device lacks them."""
        cos, sin = rotary_table(self.config.rope, self.config.head_dim, self.config.block_size)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @torch.no_grad()
    def initialise(self) -> None:
        """All initial values: normal with standard deviation 0.02 for matrices and sinks, 1 for norms, 0 for biases.

        The two projections into the residual stream get 0.02 / sqrt(2 * n_layer), as in GPT-2, so that the stream does
        not grow with depth.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith(("o_proj.weight", "experts.down_proj")):
                parameter.normal_(std=0.02 * (2 * self.config.n_layer) ** -0.5)
            elif name.endswith(("bias", "_bias")):
                parameter.zero_()
            else:
                parameter.normal_(std=0.02)

    def forward(
        self,
        ids_bt: Tensor,
        cache: KVCache | None = None,
        targets_bt: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> Tensor:
        """Logits (B, T, V); with targets (B, T), the sum of their -log p, in nats and float32, instead.

        With a cache, `ids_bt` are the tokens after those that each of its rows holds, and are added to it.
        `logits_to_keep`: only those of the last tokens, as many (0: all). Raises `ValueError` if a row has more tokens
        than the block size in all.
        """
        T = ids_bt.shape[1]
        end = T + (max(cache.lengths) if cache is not None else 0)
        if end > self.config.block_size:
            raise ValueError(f"{end} tokens do not fit a block of {self.config.block_size}")
        positions = slice(T) if cache is None else cache.begin(T).unsqueeze(1)  # one for all heads
        rotary = (self.get_buffer("cos")[positions], self.get_buffer("sin")[positions])
        x_btc = self.dropout(self.embed_tokens(ids_bt))
        # whoever studies the model by hooks wants its logits
        fast = (self.training or targets_bt is not None) and cache is None and fused.suits(x_btc)
        # only batches of training have few shapes, each of which would be compiled anew
        run_block, run_head = (self.run_block, self.run_head) if self.training else (plain_block, plain_head)
        for block in self.layers:
            plain = cache is None and not fast
            x_btc = run_block(block, x_btc, rotary) if plain else block(x_btc, rotary, cache, fast)
        if targets_bt is None:
            return self.lm_head(self.norm(x_btc[:, -logits_to_keep:]))
        if fast:
            head = (self.norm.eps, self.norm.weight, self.lm_head.weight)
            return fused.apply(fused.HeadLoss, x_btc, targets_bt, *head)
        return run_head(self.norm, self.lm_head, x_btc, targets_bt)

    def parameter_counts(self) -> tuple[int, int]:
        """Total parameters, and those active for each token (the chosen experts only)."""
        total = sum(p.numel() for p in self.parameters())
        experts = sum(p.numel() for name, p in self.named_parameters() if ".experts." in name)
        inactive = experts * (self.config.n_experts - self.config.experts_per_token) // self.config.n_experts
        return total, total - inactive


class _NoInitialValues(TorchFunctionMode):
    """Skips `torch.nn.init`: random values on the meta device load PyTorch's compiler, which takes a second or two."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return (kwargs or {}).get("tensor")
        return func(*args, **(kwargs or {}))


def meta_decoder(config: ModelConfig) -> Decoder:
    """A decoder of shapes without values, whatever its size; `compute_rotary` is to be called once it has weights."""
    with torch.device("meta"), _NoInitialValues():
        return Decoder(config)
