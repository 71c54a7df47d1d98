"""Every setting, with its meaning, its default and its limits, in one place.

The dataclasses are frozen; `option` carries the help text from which `cli` makes the flags. Defaults are the
mission's model. `ModelConfig` describes a model exactly; a field of it without `option` is not a flag but follows from
the others or from a checkpoint.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mini_transformer.errors import UserError

SLIDING, FULL = "sliding_attention", "full_attention"
MIN_VOCAB_SIZE = 257  # each byte and the end token
DEFAULT_VOCAB_SIZE = 4096
TRAINABLE_TOKENIZERS = ("char", "bpe")  # the tokenizers that are made from the text


def option(default: Any, help: str, **limits: Any) -> Any:
    """A field that is a flag too. `limits`: `least`, `most` (inclusive), `above` (exclusive), `choices`, `metavar`."""
    return field(default=default, metadata={"help": help, **limits})


def option_help(part: Any, name: str) -> str:
    """The help text of a field, for commands that take it too."""
    return str(part.__dataclass_fields__[name].metadata["help"])


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions. YaRN with factor 1 equals plain rotary, and is what every reader of GPT-OSS accepts."""

    kind: str = "yarn"  # or "default", plain
    theta: float = 10_000.0
    factor: float = 1.0
    original_context: int = 256
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model; `resolve` fills in what follows from the rest."""

    block_size: int = option(256, "context: tokens that the model sees at once", least=2, most=2**20)
    n_layer: int = option(24, "number of layers", least=1, most=1000)
    n_embd: int = option(512, "width of the model", least=4, most=2**17)
    n_head: int = option(8, "attention heads; must divide the width into heads of an even size", least=1, most=2**16)
    n_kv_head: int = option(0, "key/value heads, shared by the attention heads (0: as many)", least=0)
    n_experts: int = option(4, "experts per layer (1: a dense model)", least=1, most=4096)
    experts_per_token: int = option(0, "experts that each token uses (0: 2, or 1 of a dense model)", least=0, most=4096)
    expert_hidden: int = option(
        0, "hidden size of an expert (0: 8/3 of the width over the experts per token)", least=0, most=2**20
    )
    sliding_window: int = option(0, "tokens that every second layer sees (0: the whole block)", least=0, most=2**20)
    dropout: float = option(0.2, "share of activations dropped in training", least=0.0, most=0.9)
    vocab_size: int = 0
    head_dim: int = 0
    layer_types: tuple[str, ...] = ()
    rope: RopeConfig = RopeConfig()
    norm_eps: float = 1e-5
    tie_embeddings: bool = False

    def resolve(self, vocab_size: int) -> "ModelConfig":
        """The same with every 0 replaced by what it stands for."""
        experts_per_token = self.experts_per_token or min(2, self.n_experts)
        per_expert = 8 / 3 * self.n_embd / experts_per_token
        return dataclasses.replace(
            self,
            vocab_size=vocab_size,
            n_kv_head=self.n_kv_head or self.n_head,
            experts_per_token=experts_per_token,
            head_dim=self.head_dim or self.n_embd // self.n_head,
            expert_hidden=self.expert_hidden or math.ceil(per_expert / 32) * 32,
            sliding_window=self.sliding_window or self.block_size,
            layer_types=self.layer_types or tuple((SLIDING, FULL)[i % 2] for i in range(self.n_layer)),
            rope=dataclasses.replace(self.rope, original_context=self.block_size),
        )

    def window(self, layer: int) -> int:
        """How many tokens a layer sees, the current one included."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else self.block_size


@dataclass(frozen=True)
class OptimConfig:
    """How the weights move."""

    batch_size: int = option(64, "blocks per iteration, whatever the number of processes", least=1, most=2**20)
    warmup_iters: int = option(100, "iterations in which the rate rises (at most a tenth of the phase)", least=0)
    weight_decay: float = option(0.1, "pull of matrices towards zero, times the rate", least=0.0)
    beta1: float = option(0.9, "AdamW: memory of the gradient", least=0.0, most=0.9999)
    beta2: float = option(0.99, "AdamW: memory of its square", least=0.0, most=0.99999)
    grad_clip: float = option(1.0, "longest gradient; a longer one is shortened", above=0.0)
    balance_rate: float = option(1e-3, "step of the router's bias towards experts with too few tokens", least=0.0)


@dataclass(frozen=True)
class TextConfig:
    """How text is read and becomes tokens; all of it decides the result, but for where tokens are kept."""

    tokenizer: str = option("char", "char, bpe, a folder with tokenizer.json, or a Hub name", metavar="KIND")
    vocab_size: int = option(0, "tokens that bpe learns (0: 4096)", least=0, most=2**24)
    replay: float = option(0.0, "share of pre-training text in each batch of fine-tuning", least=0.0, most=0.9)
    text_field: str = option("text", "field of JSON, CSV, Parquet or Hub records that holds the text", metavar="NAME")
    max_unreadable: int = option(100, "records without readable text that are left out before it is an error", least=0)
    in_memory: int = option(1 << 23, "bytes of text that are kept in memory; more goes to the cache", least=0)
    cache_dir: Path | None = option(None, "where the tokens of big texts are kept", metavar="DIR")


@dataclass(frozen=True)
class RunConfig:
    """Where and how the run goes; `training.checkpoint.FREE` lists what does not change its result."""

    out_dir: Path = option(Path("out"), "folder of the model", metavar="DIR")
    val_data: Path | None = option(None, "validation text, instead of a tenth of the training text", metavar="FILE")
    encoding: str = option("utf-8", "encoding of the text files")
    seed: int = option(1337, "seed of weights, order and dropout", least=0, most=2**63 - 1)
    eval_interval: int = option(100, "iterations between evaluations", least=1)
    eval_iters: int = option(200, "batches of an evaluation (at most one pass over the text)", least=1, most=2**31)
    sample_interval: int = option(500, "iterations between samples of writing (0: none)", least=0)
    checkpoint_interval: int = option(100, "iterations between checkpoints", least=1)
    micro_batch_size: int = option(0, "blocks computed at once, to fit memory (0: chosen)", least=0)
    precision: str = option("auto", "bfloat16 where it is faster and safe", choices=("auto", "float32", "bfloat16"))
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    gpus: str | None = option(None, "id of the GPU to use", metavar="ID")
    overwrite: bool = option(False, "replace a run that the folder holds")


@dataclass(frozen=True)
class Phase:
    """One stretch of training on one body of text."""

    name: str
    data: tuple[Path, ...]
    iters: int
    lr: float
    weights: tuple[float, ...] = ()  # shares of the sources in each batch; none: as much as they have


@dataclass(frozen=True)
class TrainConfig:
    """All of a training run. Phases follow each other; the validation text is the last phase's."""

    phases: tuple[Phase, ...]
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    text: TextConfig = TextConfig()
    fingerprints: dict = field(default_factory=dict)


# One dial for newcomers: shape, batch, rate and horizon that belong together. Explicit flags win.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(n_layer=4, n_embd=128, n_head=4, block_size=128, batch_size=8, dropout=0.1, lr=2e-3, iters=800),
    "laptop": dict(n_layer=4, n_embd=192, n_head=6, block_size=256, batch_size=16, lr=1e-3, iters=2000),
    "mission": {},
}


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def check_limits(name: str, value: Any, limits: Any) -> None:
    """Refuse a value outside a field's limits."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{flag(name)}: {value} is not a number to work with")
    if "least" in limits and value < limits["least"]:
        raise UserError(f"{flag(name)}: {value} is too small: at least {limits['least']}")
    if "above" in limits and not value > limits["above"]:
        raise UserError(f"{flag(name)}: {value} is too small: it must be above {limits['above']}")
    if "most" in limits and value > limits["most"]:
        raise UserError(f"{flag(name)}: {value} is too large: at most {limits['most']}")


def check_model(model: ModelConfig) -> None:
    """Refuse a shape that cannot be built or trained, naming the flags."""
    if model.n_embd % model.n_head or model.n_embd // model.n_head % 2:
        fitting = [n for n in range(1, model.n_embd // 2 + 1) if model.n_embd % (2 * n) == 0]
        nearest = min(fitting, key=lambda n: abs(n - model.n_head), default=1)
        raise UserError(
            f"--n-head: {model.n_head} heads do not divide a width (--n-embd) of {model.n_embd} "
            f"into heads of an even size; {nearest} would"
        )
    if model.n_embd % 4:
        raise UserError(f"--n-embd: the width must be a multiple of 4, not {model.n_embd}")
    if model.n_kv_head and model.n_head % model.n_kv_head:
        raise UserError(f"--n-kv-head: {model.n_kv_head} does not divide the {model.n_head} heads")
    if model.expert_hidden % 4:
        raise UserError(f"--expert-hidden: must be a multiple of 4, not {model.expert_hidden}")
    if model.experts_per_token > model.n_experts:
        raise UserError(
            f"--experts-per-token: {model.experts_per_token} is more than the {model.n_experts} experts (--n-experts)"
        )
    if model.experts_per_token == 1 < model.n_experts:
        raise UserError(
            f"--experts-per-token: 1 of {model.n_experts} would leave the router without a gradient; "
            "take 2 or more, or --n-experts 1 for a dense model"
        )


def check_fields(part: Any) -> None:
    """Refuse a dataclass with a value outside its field's limits."""
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        if f.metadata and value is not None:
            check_limits(f.name, value, f.metadata)


def check_text(text: TextConfig) -> None:
    """Refuse settings of the text that do not go together."""
    check_fields(text)
    if text.vocab_size and text.tokenizer != "bpe":
        raise UserError(f"--vocab-size: goes with --tokenizer bpe, not {text.tokenizer}")
    if 0 < text.vocab_size < MIN_VOCAB_SIZE:
        raise UserError(f"--vocab-size: {text.vocab_size} is too small: {MIN_VOCAB_SIZE} stand for bytes and the end")


def check(config: TrainConfig) -> None:
    """All checks that need no file and no device."""
    for part in (config.model, config.optim, config.run):
        check_fields(part)
    check_text(config.text)
    if config.text.replay and len(config.phases) == 1:
        raise UserError("--replay: goes with --pretrain-data and --finetune-data")
    check_model(config.model)
    for phase in config.phases:
        suffix = "" if len(config.phases) == 1 else f"_{phase.name}"
        check_limits(f"max_iters{suffix}", phase.iters, {"least": 1, "most": 10**8 - 1})
        check_limits(f"lr{suffix}", phase.lr, {"above": 0.0, "most": 1.0})


FREE = (
    "out_dir",
    "overwrite",
    "device",
    "gpus",
    "sample_interval",
    "checkpoint_interval",
    "val_data",
    "encoding",
    "tokenizer",
    "cache_dir",
    "in_memory",
    "text_field",
    "max_unreadable",
)


def recorded_settings(config):
    values = {}
    for part in (config.text, config.model, config.optim, config.run):
        for f in dataclasses.fields(part):
            if f.metadata and f.name not in FREE:
                values[f.name] = getattr(part, f.name)
    for phase in config.phases:
        suffix = "" if len(config.phases) == 1 else f"_{phase.name}"
        values |= {f"max_iters{suffix}": phase.iters, f"lr{suffix}": phase.lr}
    return values


def settings_difference(old, new):
    for name in [*new, *(name for name in old if name not in new)]:
        if old.get(name) != new.get(name):
            return f"`{name}`: {old.get(name, 'none')} there, {new.get(name, 'none')} here"
    return ""
