"""The model folder: a Hugging Face checkpoint that `GptOssForCausalLM` opens as it stands.

`config.json` follows the GptOss schema in the one profile that `transformers`, llama.cpp, Ollama and vLLM all accept;
facts of our own stand under the key "mini_transformer". Reading takes any GPT-OSS configuration, never runs code from
the folder, and says in one line what is wrong with a folder that does not fit.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mini_transformer
from mini_transformer.config import FULL, SLIDING, ModelConfig, RopeConfig
from mini_transformer.errors import UserError
from mini_transformer.files import replacing, write_json
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.moe import SWIGLU_ALPHA, SWIGLU_LIMIT

FORMAT = 1  # of our own key; raised when an older version could no longer read the folder
LONGEST_BLOCK = 2**20
LARGEST = 2**40  # of any whole number
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"


def to_json(config: ModelConfig, eot_id: int, facts: dict[str, Any]) -> dict[str, Any]:
    """The content of `config.json`. Weights are always written untied, as llama.cpp and vLLM need them."""
    rope: dict[str, Any] = {"rope_type": config.rope.kind, "rope_theta": config.rope.theta}
    if config.rope.kind == "yarn":
        rope |= {
            "factor": config.rope.factor,
            "beta_fast": config.rope.beta_fast,
            "beta_slow": config.rope.beta_slow,
            "truncate": config.rope.truncate,
            "original_max_position_embeddings": config.rope.original_context,
        }
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.expert_hidden,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "num_local_experts": config.n_experts,
        "num_experts_per_tok": config.experts_per_token,
        "max_position_embeddings": config.block_size,
        "sliding_window": config.sliding_window,
        "layer_types": list(config.layer_types),
        "rope_parameters": rope,
        "rms_norm_eps": config.norm_eps,
        "swiglu_alpha": SWIGLU_ALPHA,
        "swiglu_limit": SWIGLU_LIMIT,
        "hidden_act": "silu",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.0,
        "use_cache": True,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "pad_token_id": eot_id,
        "mini_transformer": {"format": FORMAT, "version": mini_transformer.__version__, **facts},
    }


@dataclass(frozen=True)
class _Section:
    """A stranger's JSON object, whose values are taken by key, type and range; `UserError` for anything else."""

    values: dict[str, Any]
    where: str

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self.values and default is None:
            raise UserError(f"{self.where}: the key {key!r} is missing")
        found = self.values.get(key)
        return default if found is None else found

    def whole(self, key: str) -> int:
        found = self.get(key)
        if type(found) is not int or not 1 <= found <= LARGEST:  # a bool is an int too
            raise UserError(f"{self.where}: {key} is {brief(found)}, expected a whole number from 1 to {LARGEST}")
        return found

    def number(self, key: str, least: float, most: float, default: float | None = None) -> float:
        found = self.get(key, default)
        if type(found) not in (int, float) or not least <= found <= most:
            raise UserError(f"{self.where}: {key} is {brief(found)}, expected a number from {least:g} to {most:g}")
        return float(found)

    def truth(self, key: str, default: bool | None = None) -> bool:
        found = self.get(key, default)
        if not isinstance(found, bool):
            raise UserError(f"{self.where}: {key} is {brief(found)}, expected true or false")
        return found


def from_json(value: dict[str, Any], where: str = CONFIG) -> ModelConfig:
    """The model that a `config.json` describes. Raises `UserError` if it is no GPT-OSS model that we can run."""
    given = _Section(value if isinstance(value, dict) else {}, where)
    _check_kind(given)
    config = ModelConfig(
        vocab_size=given.whole("vocab_size"),
        n_embd=given.whole("hidden_size"),
        n_layer=given.whole("num_hidden_layers"),
        n_head=given.whole("num_attention_heads"),
        n_kv_head=given.whole("num_key_value_heads"),
        head_dim=given.whole("head_dim"),
        n_experts=given.whole("num_local_experts"),
        experts_per_token=given.whole("num_experts_per_tok"),
        expert_hidden=given.whole("intermediate_size"),
        block_size=given.whole("max_position_embeddings"),
        sliding_window=given.whole("sliding_window"),
        layer_types=_layer_types(given),
        norm_eps=given.number("rms_norm_eps", 1e-12, 1),
        tie_embeddings=given.truth("tie_word_embeddings"),
        rope=_rope(given),
    )
    if config.block_size > LONGEST_BLOCK:
        raise UserError(
            f"{where}: a context of {config.block_size} tokens is beyond the {LONGEST_BLOCK} that we can hold"
        )
    if config.n_head % config.n_kv_head or config.experts_per_token > config.n_experts or config.head_dim % 2:
        raise UserError(f"{where}: heads or experts do not fit each other")
    return config


def _check_kind(given: _Section) -> None:
    """Refuse another architecture, another format of our own key, and variants of GPT-OSS that we do not compute."""
    kind = given.values.get("model_type")
    if kind != "gpt_oss":
        raise UserError(f"{given.where}: model_type is {brief(kind)}; only 'gpt_oss' models can be read")
    own = given.values.get("mini_transformer") or {}
    if not isinstance(own, dict):
        raise UserError(f"{given.where}: mini_transformer is {brief(own)}, expected an object or no such key")
    if own.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"{given.where}: written in format {brief(own['format'])}, "
            f"this version of Mini-Transformer reads format {FORMAT}"
        )
    for key, expected in {"attention_bias": True, "swiglu_alpha": SWIGLU_ALPHA, "swiglu_limit": SWIGLU_LIMIT}.items():
        found = given.values.get(key, expected)
        if found != expected:
            raise UserError(f"{given.where}: {key} is {brief(found)}, only {expected} is known")


def _layer_types(given: _Section) -> tuple[str, ...]:
    kinds, layers = given.get("layer_types"), given.whole("num_hidden_layers")
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in (SLIDING, FULL) for kind in kinds):
        raise UserError(f"{given.where}: layer_types must list {layers} times {SLIDING!r} or {FULL!r}")
    return tuple(kinds)


def _rope(given: _Section) -> RopeConfig:
    """Rotary positions as transformers 5 spells them (`rope_parameters`) or 4 (`rope_scaling` beside `rope_theta`)."""
    new, old = given.values.get("rope_parameters"), given.values.get("rope_scaling")
    key, values = ("rope_parameters", new) if old is None else ("rope_scaling", old)  # of both, transformers takes this
    if values is None and "rope_scaling" in given.values:  # null in transformers 4: plain rotary
        values = {"rope_type": "default"}
    if not isinstance(values, dict) or values.get("rope_type") not in ("default", "yarn"):
        raise UserError(f"{given.where}: {key} must name the rope_type 'default' or 'yarn'")
    if "rope_theta" not in values:
        values = {**values, "rope_theta": given.get("rope_theta")}
    rope = _Section(values, f"{given.where}: {key}")
    theta = rope.number("rope_theta", 2, 1e12)
    if values["rope_type"] == "default":
        return RopeConfig(kind="default", theta=theta)
    return RopeConfig(
        kind="yarn",
        theta=theta,
        factor=rope.number("factor", 1, 1e6),
        original_context=rope.whole("original_max_position_embeddings"),
        beta_fast=rope.number("beta_fast", 1e-6, 1e6, 32.0),
        beta_slow=rope.number("beta_slow", 1e-6, 1e6, 1.0),
        truncate=rope.truth("truncate", True),
    )


def export_weights(model: Decoder) -> dict[str, Tensor]:
    """The weights under their GPT-OSS names, as copies on the CPU in float32; gate and up interleaved."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().to("cpu", torch.float32)
        if "gate_up_proj" in name:
            tensor = torch.stack(tensor.chunk(2, dim=-1), dim=-1).flatten(-2)
        tensors[name if name.startswith("lm_head") else f"model.{name}"] = tensor.clone().contiguous()
    return tensors


def import_weights(model: Decoder, tensors: dict[str, Tensor], where: str = WEIGHTS, assign: bool = False) -> None:
    """Load weights that have GPT-OSS names into a model; `assign`: the tensors become its parameters, in float32.

    Raises `UserError` if one is missing, misshapen, of integers or not finite.
    """
    state = {}
    for name, own in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_embeddings:
            name_there = "model.embed_tokens.weight"
        else:
            name_there = name if name.startswith("lm_head") else f"model.{name}"
        tensor = tensors.get(name_there)
        if tensor is None:
            raise UserError(f"{where}: the tensor {name_there} is missing")
        if tensor.shape != own.shape:
            raise UserError(
                f"{where}: {name_there} has the shape {tuple(tensor.shape)}, {CONFIG} asks for {tuple(own.shape)}"
            )
        if tensor.dtype not in FLOATS:
            raise UserError(f"{where}: {name_there} is of {tensor.dtype}, expected float32, float16 or bfloat16")
        tensor = tensor.float()
        if not torch.isfinite(tensor).all():
            raise UserError(f"{where}: {name_there} holds NaN or infinity; the training went wrong or it is damaged")
        if "gate_up_proj" in name:
            tensor = torch.cat((tensor[..., 0::2], tensor[..., 1::2]), dim=-1)
        state[name] = tensor
    model.load_state_dict(state, assign=assign)
    if model.config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight


def write_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write `model.safetensors`, whole or not at all."""
    with replacing(folder / WEIGHTS) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:  # a full disk, for one
            raise UserError(f"{folder / WEIGHTS}: cannot be written ({error})") from None


def write_config(folder: Path, config: ModelConfig, eot_id: int, unseen: list[int], facts: dict[str, Any]) -> None:
    """Write `config.json` and `generation_config.json`. Tokens never seen in training are suppressed when writing."""
    write_json(folder / CONFIG, to_json(config, eot_id, facts))
    generation = {"do_sample": True, "temperature": 0.8, "max_new_tokens": 400, "suppress_tokens": unseen}
    ids = {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": eot_id}
    write_json(folder / GENERATION, {**ids, **generation})


def read_json(path: Path) -> Any:
    """A JSON file, or a `UserError` that says why not."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def read_model(folder: Path, device: torch.device) -> Decoder:
    """The model in a folder, in float32 and ready to use. Raises `UserError` for a folder that does not hold one."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such model folder; train.py --out-dir {folder} makes one")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing: no model stands here (yet)")
    config = from_json(read_json(folder / CONFIG), str(folder / CONFIG))
    try:
        tensors = load_file(folder / WEIGHTS)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{folder / WEIGHTS}: damaged or incomplete ({error})") from None
    if config.n_layer > len(tensors):
        raise UserError(f"{folder / WEIGHTS}: holds no {config.n_layer} layers, as {CONFIG} says")
    try:
        with torch.device("meta"):  # shapes only: the file's tensors become the weights, nothing is drawn at random
            model = Decoder(config)
    except RuntimeError:
        raise UserError(f"{folder / CONFIG}: sizes too large for any tensor; {WEIGHTS} cannot hold them") from None
    import_weights(model, tensors, str(folder / WEIGHTS), assign=True)
    model.compute_rotary()
    return model.to(device).eval()


def read_suppress_tokens(folder: Path) -> list[int]:
    """Tokens that are never to be written (`suppress_tokens`); none if the folder does not say."""
    path = folder / GENERATION
    value = read_json(path) if path.is_file() else {}
    suppressed = (value.get("suppress_tokens") if isinstance(value, dict) else None) or []
    if not isinstance(suppressed, list) or not all(type(i) is int and i >= 0 for i in suppressed):
        raise UserError(f"{path}: suppress_tokens must be a list of token ids")
    return suppressed
