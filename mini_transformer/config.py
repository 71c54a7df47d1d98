"""Every setting, declared once: its default, its help text and its limits.

A field made with `option` is a setting and a flag; the other fields are derived or come with a model.
The defaults are those of the recipe `mission`.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import ge, gt, le
from pathlib import Path
from typing import Any

from mini_transformer.errors import UserError

SLIDING, FULL = "sliding_attention", "full_attention"
MIN_VOCAB_SIZE, MAX_VOCAB_SIZE = 257, 2**20  # each byte and the end token; four times what large models have
DEFAULT_VOCAB_SIZE, MAX_ITERS = 4096, 10**8 - 1
TRAINABLE_TOKENIZERS = ("char", "bpe")  # the tokenizers that are made from the text
_LIMITS = {"ge": (ge, "small: at least"), "gt": (gt, "small: it must be above"), "le": (le, "large: at most")}
_ITERS, _LR, _WEIGHTS = {"ge": 1, "le": MAX_ITERS}, {"gt": 0.0, "le": 1.0}, {"gt": 0.0}


def option(default: Any, help: str, **more: Any) -> Any:
    """A field that is a setting.

    `ge`, `le`, `gt`, `choices`: its limits. `free`: it may change between two calls of one run without changing the
    result. `local`: it concerns this machine or this call only, so a run does not record it.
    """
    if wrong := more.keys() - {"ge", "le", "gt", "choices", "metavar", "free", "local"}:
        raise TypeError(f"option: {wrong}")
    return field(default=default, metadata={"help": help, **more})


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

    block_size: int = option(256, "context length in tokens", ge=2, le=2**20)
    n_layer: int = option(24, "number of layers", ge=1, le=1000)
    n_embd: int = option(512, "embedding width of the model", ge=4, le=2**17)
    n_head: int = option(8, "number of attention heads; n-embd / n-head must be even", ge=1, le=2**16)
    n_kv_head: int = option(0, "number of key/value heads, for grouped-query attention (0: n-head)", ge=0)
    n_experts: int = option(4, "number of experts per layer (1: a dense model)", ge=1, le=4096)
    experts_per_token: int = option(0, "number of experts per token (0: 2, or 1 in a dense model)", ge=0, le=4096)
    expert_hidden: int = option(0, "hidden size of an expert (0: 8/3 n-embd / experts-per-token)", ge=0, le=2**20)
    sliding_window: int = option(0, "attention window of every second layer (0: block-size)", ge=0, le=2**20)
    dropout: float = option(0.2, "fraction of activations dropped in training", ge=0.0, le=0.9)
    vocab_size: int = 0
    head_dim: int = 0
    layer_types: tuple[str, ...] = ()
    rope: RopeConfig = RopeConfig()
    norm_eps: float = 1e-5
    tie_embeddings: bool = False

    def resolve(self, vocab_size: int) -> "ModelConfig":
        """The same with every 0 replaced by what it stands for."""
        experts_per_token = self.experts_per_token or min(2, self.n_experts)
        stretched = self.rope.factor != 1  # of a model that began with a shorter context, which its positions follow
        return dataclasses.replace(
            self,
            vocab_size=vocab_size,
            n_kv_head=self.n_kv_head or self.n_head,
            experts_per_token=experts_per_token,
            head_dim=self.head_dim or self.n_embd // self.n_head,
            expert_hidden=self.expert_hidden or math.ceil(self.n_embd / experts_per_token / 12) * 32,
            sliding_window=self.sliding_window or self.block_size,
            layer_types=self.layer_types or tuple((SLIDING, FULL)[i % 2] for i in range(self.n_layer)),
            rope=self.rope if stretched else dataclasses.replace(self.rope, original_context=self.block_size),
        )

    def window(self, layer: int) -> int:
        """How many tokens a layer sees, the current one included."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else self.block_size


@dataclass(frozen=True)
class OptimConfig:
    """How the weights are optimized."""

    batch_size: int = option(64, "number of blocks per iteration, over all processes", ge=1, le=2**20)
    optimizer: str = option("adamw", "adamw, or muon for the matrices of blocks", choices=("adamw", "muon"))
    warmup_iters: int = option(100, "iterations of linear warm-up (at most a tenth of the phase)", ge=0)
    weight_decay: float = option(0.1, "decoupled weight decay of the matrices", ge=0.0)
    beta1: float = option(0.9, "AdamW first-moment decay", ge=0.0, le=0.9999)
    beta2: float = option(0.99, "AdamW second-moment decay", ge=0.0, le=0.99999)
    grad_clip: float = option(1.0, "maximum gradient norm", gt=0.0)
    dropout_start: float | None = option(None, "dropout when a phase starts (default: as at its end)", ge=0.0, le=0.9)
    teacher_weight: float = option(0.5, "share of the loss that the predictions of --teacher get", ge=0.0, le=1.0)
    balance_rate: float = option(1e-3, "step size of the router biases that balance the experts", ge=0.0)


@dataclass(frozen=True)
class TextConfig:
    """How text is read and becomes tokens."""

    # free: tokenizers are compared by their fingerprints, not by their names
    tokenizer: str = option("char", "char, bpe, a folder with tokenizer.json, or a Hub name", metavar="KIND", free=True)
    vocab_size: int = option(0, "vocabulary size that bpe learns (0: 4096)", ge=0, le=MAX_VOCAB_SIZE)
    bpe_dropout: float = option(0.0, "probability of leaving out a merge of bpe, in training", ge=0.0, le=0.9)
    val_fraction: float = option(0.1, "fraction of --data that is held out without --val-data", gt=0.0, le=0.5)
    preview: float = option(0.0, "fraction of each pre-training batch that is fine-tuning text", ge=0.0, le=0.9)
    replay: float = option(0.0, "fraction of each fine-tuning batch that is pre-training text", ge=0.0, le=0.9)
    text_field: str = option("text", "field of JSON, CSV, Parquet or Hub records to read", metavar="NAME", free=True)
    max_unreadable: int = option(100, "maximum number of records without readable text to leave out", ge=0, free=True)
    in_memory: int = option(1 << 23, "keep texts of up to N bytes in memory, more in the cache", ge=0, local=True)
    cache_dir: Path | None = option(None, "folder for the tokens of large texts", metavar="DIR", local=True)


@dataclass(frozen=True)
class RunConfig:
    """Where and how the run goes."""

    out_dir: Path = option(Path("out"), "folder of the model", metavar="DIR", local=True)
    overwrite: bool = option(False, "replace a run that the folder holds", local=True)
    init_from: Path | None = option(None, "model to start from; base: the package's", metavar="DIR", local=True)
    teacher: tuple[Path, ...] = option((), "models whose predictions are learnt, too", metavar="DIR", local=True)
    ensemble: int = option(0, "first train N models of other seeds, as teachers of this one", ge=0, le=9)
    fork: Path | None = option(None, "go on in DIR with the unfinished run of --out-dir", metavar="DIR", local=True)
    tensorboard: bool = option(False, "write the metrics for TensorBoard, too", local=True)
    device: str = option("auto", "auto: CUDA, MPS, then CPU", choices=("auto", "cpu", "cuda", "mps"), local=True)
    gpus: str | None = option(None, "ids of the GPUs to use: 0, 0,1 or all", metavar="ID", local=True)
    nproc: int = option(0, "number of processes on this machine (0: one, or one per GPU)", ge=0, le=1024, local=True)
    parallel: str = option("auto", "auto: DDP while it fits", choices=("auto", "ddp", "fsdp"), local=True)
    rank_timeout: float = option(600.0, "seconds until a process that does not answer is lost", gt=0.0, local=True)
    precision: str = option("auto", "auto: bfloat16 where GPU or CPU have it", choices=("auto", "float32", "bfloat16"))
    compile: str = option("auto", "compile blocks on a GPU; auto: if it pays", choices=("auto", "on", "off"), free=True)
    micro_batch_size: int = option(0, "number of blocks computed at once, to fit memory (0: chosen)", ge=0)
    seed: int = option(1337, "random seed of weights, data order and dropout", ge=0, le=2**63 - 1)
    eval_interval: int = option(100, "evaluate every N iterations", ge=1)
    eval_iters: int = option(200, "number of batches per evaluation (at most one pass over the text)", ge=1, le=2**31)
    early_stop: int = option(0, "end a phase after N evaluations without improvement (0: never)", ge=0)
    sample_interval: int = option(500, "write a sample every N iterations (0: never)", ge=0, free=True)
    checkpoint_interval: int = option(100, "save a checkpoint every N iterations", ge=1, free=True)
    keep: int = option(2, "number of newest checkpoints to keep while a run lasts", ge=1, free=True)
    keep_checkpoints: bool = option(False, "keep the checkpoints of a finished run", free=True)
    val_data: Path | None = option(None, "validation text (default: part of --data)", metavar="FILE", local=True)
    encoding: str = option("utf-8", "encoding of the text files", metavar="NAME", free=True)
    epochs: float = option(0.0, "as many iterations as N passes over the training text take", ge=0.0, le=1e6)
    max_minutes: float = option(0.0, "as many iterations as fit N minutes, start and end included", ge=0.0, le=1e6)


@dataclass(frozen=True)
class PhaseSettings:
    """What to train on, for how long and how fast, in one phase or two; the phases of a run follow from it."""

    data: tuple[str, ...] = option((), "text to train on, in one phase", metavar="FILE", local=True)
    pretrain_data: tuple[str, ...] = option((), "text of the first of two phases", metavar="FILE", local=True)
    finetune_data: tuple[str, ...] = option((), "text of the second of two phases", metavar="FILE", local=True)
    data_weights: tuple[float, ...] = option((), "the weights of FILE:WEIGHT", **_WEIGHTS)
    pretrain_data_weights: tuple[float, ...] = option((), "the same, first phase", **_WEIGHTS)
    finetune_data_weights: tuple[float, ...] = option((), "the same, second phase", **_WEIGHTS)
    max_iters: int = option(10_000, "number of iterations, in one phase", **_ITERS)
    max_iters_pretrain: int = option(10_000, "number of iterations, first phase", **_ITERS)
    max_iters_finetune: int = option(10_000, "number of iterations, second phase", **_ITERS)
    lr: float = option(5e-4, "peak learning rate, in one phase", **_LR)
    lr_pretrain: float = option(3e-4, "peak learning rate, first phase", **_LR)
    lr_finetune: float = option(5e-4, "peak learning rate, second phase", **_LR)


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is drawn; see `generation.sampling`."""

    temperature: float = option(0.8, "divides the logits; 0: always the likeliest token", ge=0.0)
    top_k: int = option(0, "draw from the N likeliest tokens only (0: all)", ge=0)
    top_p: float = option(1.0, "draw from the likeliest tokens whose probabilities first reach X", gt=0.0, le=1.0)
    min_p: float = option(0.0, "draw from tokens at least X times as likely as the likeliest", ge=0.0, le=1.0)
    repetition_penalty: float = option(1.0, "above 1: makes tokens of the context less likely", ge=0.01, le=100.0)


@dataclass(frozen=True)
class GenerateConfig:
    """What to write, and with which model."""

    model_dir: Path = option(Path("out"), "folder of the model", metavar="DIR")
    prompt: str = option("", "text to continue; - reads it from standard input", metavar="TEXT")
    max_new_tokens: int = option(400, "number of tokens to write, beyond the context length too", ge=1)
    seed: int | None = option(None, "random seed (default: a new one, which is printed)", ge=0, le=2**63 - 1)
    num_samples: int = option(1, "number of texts to write, two blank lines between them", ge=1)
    stop_at_end: bool = option(False, "stop where the model ends a document")
    precision: str = option("float32", "of the weights; bfloat16 reads half as much", choices=("float32", "bfloat16"))


@dataclass(frozen=True)
class Phase:
    """One stretch of training on one body of text."""

    name: str
    data: tuple[Path, ...]
    iters: int
    lr: float
    weights: tuple[float, ...] = ()  # shares of the sources in each batch; none: as much as they have


TRAIN_PARTS = {"model": ModelConfig, "optim": OptimConfig, "run": RunConfig, "text": TextConfig}


@dataclass(frozen=True)
class TrainConfig:
    """All of a training run. Phases follow each other; the validation text is the last phase's."""

    phases: tuple[Phase, ...]
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    text: TextConfig = TextConfig()
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # that the texts must have, to repeat a run
    curve: tuple[tuple[float, float], ...] = ()  # of the recipe's own run, see `recipes`

    def suffix(self, phase: Phase) -> str:
        """What distinguishes the names of a phase's settings: `lr` in one phase, `lr_pretrain` in two."""
        return "" if len(self.phases) == 1 else f"_{phase.name}"


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def with_flags(message: str) -> str:
    """A message with the flags of the settings that it names in backticks."""
    return re.sub(r"`(\w+)`", lambda setting: flag(setting[1]), message)


def check_limits(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    """Refuse a value, or an item of several, outside a setting's limits."""
    for item in value if isinstance(value, tuple) else () if value is None else (value,):
        if isinstance(item, float) and not math.isfinite(item):
            raise UserError(f"`{name}`: {item} is not a number to work with")
        for key, (fits, words) in _LIMITS.items():
            if key in limits and not fits(item, limits[key]):
                raise UserError(f"`{name}`: {item} is too {words} {limits[key]}")
        if "choices" in limits and item not in limits["choices"]:
            raise UserError(f"`{name}`: {item!r} is none of {', '.join(limits['choices'])}")


def check_fields(part: Any) -> None:
    """Refuse a dataclass with a setting outside its limits."""
    for f in dataclasses.fields(part):
        check_limits(f.name, getattr(part, f.name), f.metadata)


def check(config: TrainConfig) -> None:
    """Refuse settings outside their limits, then those that do not go together. Needs no file and no device."""
    for name in TRAIN_PARTS:
        check_fields(getattr(config, name))
    for phase in config.phases:
        check_limits(f"max_iters{config.suffix(phase)}", phase.iters, _ITERS)
        check_limits(f"lr{config.suffix(phase)}", phase.lr, _LR)
    check_text(config.text)
    if len(config.phases) == 1 and (shares := [name for name in ("preview", "replay") if getattr(config.text, name)]):
        raise UserError(f"`{shares[0]}`: goes with `pretrain_data` and `finetune_data`")
    if config.optim.dropout_start and not config.model.dropout:
        raise UserError("`dropout_start`: goes with a `dropout` above 0")
    check_model(config.model)


def check_text(text: TextConfig) -> None:
    """Refuse settings of the text that do not go together."""
    for name, wrong in (("vocab_size", text.tokenizer != "bpe"), ("bpe_dropout", text.tokenizer == "char")):
        if getattr(text, name) and wrong:
            raise UserError(f"`{name}`: goes with `tokenizer` bpe, not {text.tokenizer}")
    if 0 < text.vocab_size < MIN_VOCAB_SIZE:
        raise UserError(f"`vocab_size`: {text.vocab_size} is too small: {MIN_VOCAB_SIZE} stand for bytes and the end")


def check_model(model: ModelConfig) -> None:
    """Refuse a shape that cannot be built or trained."""
    width, heads, chosen, experts = model.n_embd, model.n_head, model.experts_per_token, model.n_experts
    if not model.head_dim and (width % heads or width // heads % 2):  # it comes with a model
        fitting = [n for n in range(1, width // 2 + 1) if width % (2 * n) == 0]
        nearest = min(fitting, key=lambda n: abs(n - heads), default=1)
        why = f"do not divide a width (`n_embd`) of {width} into heads of an even size; {nearest} would"
        raise UserError(f"`n_head`: {heads} heads {why}")
    for name in ("n_embd", "expert_hidden"):
        if getattr(model, name) % 4:
            raise UserError(f"`{name}`: must be a multiple of 4, not {getattr(model, name)}")
    if model.n_kv_head and heads % model.n_kv_head:
        raise UserError(f"`n_kv_head`: {model.n_kv_head} does not divide the {heads} heads")
    if chosen > experts:
        raise UserError(f"`experts_per_token`: {chosen} is more than the {experts} experts (`n_experts`)")
    if chosen == 1 < experts:
        why = "would leave the router without a gradient; take 2 or more, or `n_experts` 1 for a dense model"
        raise UserError(f"`experts_per_token`: 1 of {experts} {why}")
