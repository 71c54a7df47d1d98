"""The model folder: a Hugging Face checkpoint that `GptOssForCausalLM` opens as is.

`config.json` follows the GptOss schema in the one profile that `transformers`, llama.cpp, Ollama and vLLM all accept;
our own metadata is under the key "mini_transformer". Reading takes any GPT-OSS configuration, never runs code from the
folder, and says in one line what is wrong with a folder that does not fit.
"""

from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mini_transformer import __version__
from mini_transformer.config import FULL, SLIDING, ModelConfig, RopeConfig
from mini_transformer.errors import UserError
from mini_transformer.files import read_json, replacing, write_json
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.moe import SWIGLU_ALPHA, SWIGLU_LIMIT

CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"
FORMAT = 1  # of our own metadata; raised when an older version could no longer read the folder
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # all of them are <|endoftext|>
MAX_BLOCK_SIZE = 2**20
MAX_INTEGER = 2**40  # of any size in `config.json`
FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SIZE_KEYS = {  # the key in `config.json` of each size in `ModelConfig`
    "vocab_size": "vocab_size",
    "n_embd": "hidden_size",
    "expert_hidden": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "head_dim": "head_dim",
    "n_experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "block_size": "max_position_embeddings",
    "sliding_window": "sliding_window",
}


def config_to_json(config: ModelConfig, eot_id: int, metadata: dict[str, Any]) -> dict[str, Any]:
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
        **{key: getattr(config, name) for name, key in SIZE_KEYS.items()},
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
        **dict.fromkeys(SPECIAL_TOKENS, eot_id),
        "mini_transformer": {"format": FORMAT, "version": __version__, **metadata},
    }


@dataclass(frozen=True)
class _JsonObject:
    """An untrusted JSON object, read by key, type and range (inclusive); anything else is a `UserError`."""

    values: dict[str, Any]
    where: str

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self.values and default is None:
            raise UserError(f"{self.where}: the key {key!r} is missing")
        found = self.values.get(key)
        return default if found is None else found

    def integer(self, key: str) -> int:
        found = self.get(key)
        if type(found) is not int or not 1 <= found <= MAX_INTEGER:  # a bool is an int too
            raise UserError(f"{self.where}: {key} is {brief(found)}, expected a whole number from 1 to {MAX_INTEGER}")
        return found

    def number(self, key: str, minimum: float, maximum: float, default: float | None = None) -> float:
        found = self.get(key, default)
        if type(found) not in (int, float) or not minimum <= found <= maximum:
            raise UserError(f"{self.where}: {key} is {brief(found)}, expected a number from {minimum:g} to {maximum:g}")
        return float(found)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        found = self.get(key, default)
        if not isinstance(found, bool):
            raise UserError(f"{self.where}: {key} is {brief(found)}, expected true or false")
        return found


def config_from_json(value: dict[str, Any], where: str = CONFIG) -> ModelConfig:
    """The model that a `config.json` describes. Raises `UserError` if it is not a GPT-OSS model that we can run."""
    given = _JsonObject(value if isinstance(value, dict) else {}, where)
    _check_kind(given)
    config = ModelConfig(
        **{name: given.integer(key) for name, key in SIZE_KEYS.items()},
        layer_types=_layer_types(given),
        norm_eps=given.number("rms_norm_eps", 1e-12, 1),
        tie_embeddings=given.boolean("tie_word_embeddings"),
        rope=_rope(given),
    )
    if config.block_size > MAX_BLOCK_SIZE:
        raise UserError(f"{where}: a context of {config.block_size} tokens is beyond our limit of {MAX_BLOCK_SIZE}")
    if config.n_head % config.n_kv_head or config.experts_per_token > config.n_experts or config.head_dim % 2:
        raise UserError(f"{where}: heads or experts do not fit each other")
    return config


def _check_kind(given: _JsonObject) -> None:
    """Refuse another architecture, another format of our metadata, and variants of GPT-OSS that we do not compute."""
    kind = given.values.get("model_type")
    if kind != "gpt_oss":
        raise UserError(f"{given.where}: model_type is {brief(kind)}; only 'gpt_oss' models can be read")
    own = given.values.get("mini_transformer") or {}
    if not isinstance(own, dict):
        raise UserError(f"{given.where}: mini_transformer is {brief(own)}, expected an object or no such key")
    if own.get("format", FORMAT) != FORMAT:
        has = brief(own["format"])
        raise UserError(f"{given.where}: it has format {has}, this version of Mini-Transformer reads format {FORMAT}")
    for key, expected in {"attention_bias": True, "swiglu_alpha": SWIGLU_ALPHA, "swiglu_limit": SWIGLU_LIMIT}.items():
        found = given.values.get(key, expected)
        if found != expected:
            raise UserError(f"{given.where}: {key} is {brief(found)}, only {expected} is known")


def _layer_types(given: _JsonObject) -> tuple[str, ...]:
    kinds, layers = given.get("layer_types"), given.integer("num_hidden_layers")
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in (SLIDING, FULL) for kind in kinds):
        raise UserError(f"{given.where}: layer_types must list {layers} times {SLIDING!r} or {FULL!r}")
    return tuple(kinds)


def _rope(given: _JsonObject) -> RopeConfig:
    """Rotary positions as transformers 5 spells them (`rope_parameters`) or 4 (`rope_scaling` beside `rope_theta`)."""
    new, old = given.values.get("rope_parameters"), given.values.get("rope_scaling")
    key, values = ("rope_parameters", new) if old is None else ("rope_scaling", old)  # as transformers, given both
    if values is None and "rope_scaling" in given.values:  # null in transformers 4 means plain rotary
        values = {"rope_type": "default"}
    if not isinstance(values, dict) or values.get("rope_type") not in ("default", "yarn"):
        raise UserError(f"{given.where}: {key} must name the rope_type 'default' or 'yarn'")
    if "rope_theta" not in values:
        values = {**values, "rope_theta": given.get("rope_theta")}
    rope = _JsonObject(values, f"{given.where}: {key}")
    theta = rope.number("rope_theta", 2, 1e12)
    if values["rope_type"] == "default":
        return RopeConfig(kind="default", theta=theta)
    return RopeConfig(
        kind="yarn",
        theta=theta,
        factor=rope.number("factor", 1, 1e6),
        original_context=rope.integer("original_max_position_embeddings"),
        beta_fast=rope.number("beta_fast", 1e-6, 1e6, 32.0),
        beta_slow=rope.number("beta_slow", 1e-6, 1e6, 1.0),
        truncate=rope.boolean("truncate", True),
    )


def export_weights(model: Decoder) -> dict[str, Tensor]:
    """Copies of the weights on the CPU, in float32, under their GPT-OSS names and with gate and up interleaved."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().to("cpu", torch.float32)
        if "gate_up_proj" in name:
            tensor = torch.stack(tensor.chunk(2, dim=-1), dim=-1).flatten(-2)
        tensors[_name_on_disk(name)] = tensor.clone().contiguous()
    return tensors


def _name_on_disk(name: str) -> str:
    return name if name.startswith("lm_head") else f"model.{name}"


def import_weights(model: Decoder, tensors: dict[str, Tensor], where: str = WEIGHTS, assign: bool = False) -> None:
    """Load weights under their GPT-OSS names into a model. `assign`: the tensors become its parameters, in float32.

    Raises `UserError` for a tensor that is missing, has another shape, is not of floats or not finite.
    """
    state = {}
    for name, own in model.state_dict().items():
        tied = name == "lm_head.weight" and model.config.tie_embeddings
        key = _name_on_disk("embed_tokens.weight" if tied else name)
        tensor = tensors.get(key)
        if tensor is None:
            raise UserError(f"{where}: the tensor {key} is missing")
        if tensor.shape != own.shape:
            raise UserError(f"{where}: {key} has the shape {tuple(tensor.shape)}, {CONFIG} asks for {tuple(own.shape)}")
        if tensor.dtype not in FLOAT_DTYPES:
            raise UserError(f"{where}: {key} is of {tensor.dtype}, expected float32, float16 or bfloat16")
        tensor = tensor.float()
        if not torch.isfinite(tensor).all():
            raise UserError(f"{where}: {key} holds NaN or infinity; the training went wrong or it is damaged")
        if "gate_up_proj" in name:
            tensor = torch.cat((tensor[..., 0::2], tensor[..., 1::2]), dim=-1)
        state[name] = tensor
    model.load_state_dict(state, assign=assign)
    if model.config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight


def write_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write `model.safetensors`, whole or not at all. Raises `UserError` if it cannot be written."""
    with replacing(folder / WEIGHTS) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:  # a full disk, for example
            raise UserError(f"{folder / WEIGHTS}: cannot be written ({error})") from None


def write_config(
    folder: Path, config: ModelConfig, eot_id: int, suppress_tokens: list[int], metadata: dict[str, Any]
) -> None:
    """Write `config.json` and `generation_config.json`. `suppress_tokens` are the ids that are never generated."""
    write_json(folder / CONFIG, config_to_json(config, eot_id, metadata))
    generation = {"do_sample": True, "temperature": 0.8, "max_new_tokens": 400, "suppress_tokens": suppress_tokens}
    write_json(folder / GENERATION, {**dict.fromkeys(SPECIAL_TOKENS, eot_id), **generation})


def read_model(folder: Path, device: torch.device) -> Decoder:
    """The model of a folder, in float32 and evaluation mode. Raises `UserError` if there is none, or it is damaged."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such model folder; train.py `out_dir` {folder} makes one")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing: there is no model here (yet)")
    config = config_from_json(read_json(folder / CONFIG), str(folder / CONFIG))
    try:
        tensors = load_file(folder / WEIGHTS)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{folder / WEIGHTS}: damaged or incomplete ({error})") from None
    if config.n_layer > len(tensors):
        raise UserError(f"{folder / WEIGHTS}: holds no {config.n_layer} layers, as {CONFIG} says")
    try:
        with torch.device("meta"):  # shapes only: the file's tensors become the weights
            model = Decoder(config)
    except RuntimeError:
        raise UserError(f"{folder / CONFIG}: sizes too large for any tensor; {WEIGHTS} cannot hold them") from None
    import_weights(model, tensors, str(folder / WEIGHTS), assign=True)
    model.compute_rotary()
    return model.to(device).eval()


def read_suppress_tokens(folder: Path) -> list[int]:
    """Token ids that are never generated; none if the folder does not say. Raises `UserError` for other than ids."""
    path = folder / GENERATION
    value = read_json(path) if path.is_file() else {}
    ids = (value.get("suppress_tokens") if isinstance(value, dict) else None) or []
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
        raise UserError(f"{path}: suppress_tokens must be a list of token ids")
    return ids
