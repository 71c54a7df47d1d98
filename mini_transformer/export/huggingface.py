"""The model folder: a Hugging Face checkpoint that `GptOssForCausalLM` opens as it stands.

`config.json` follows the GptOss schema in the one profile that `transformers`, llama.cpp, Ollama and vLLM all accept;
facts of our own stand under the key "mini_transformer". Reading takes any GPT-OSS configuration, never runs code from
the folder, and says in one line what is wrong with a folder that does not fit.
"""

import dataclasses
import json
from pathlib import Path
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
from mini_transformer.model.experts import ALPHA, LIMIT

FORMAT = 1  # of our own key; raised when an older version could no longer read the folder
LONGEST_BLOCK = 2**20
CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"


def to_json(config: ModelConfig, eod_id: int, facts: dict[str, Any]) -> dict[str, Any]:
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
        "swiglu_alpha": ALPHA,
        "swiglu_limit": LIMIT,
        "hidden_act": "silu",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.0,
        "use_cache": True,
        "bos_token_id": eod_id,
        "eos_token_id": eod_id,
        "pad_token_id": eod_id,
        "mini_transformer": {"format": FORMAT, "version": mini_transformer.__version__, **facts},
    }


def from_json(value: dict[str, Any], where: str = CONFIG) -> ModelConfig:
    """The model that a `config.json` describes. Raises `UserError` if it is no GPT-OSS model that we can run."""
    if not isinstance(value, dict) or value.get("model_type") != "gpt_oss":
        kind = value.get("model_type") if isinstance(value, dict) else None
        raise UserError(f"{where}: model_type is {kind!r}; only 'gpt_oss' models can be read")
    own = value.get("mini_transformer") or {}
    if own.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"{where}: written in format {own['format']}, this version of Mini-Transformer reads format {FORMAT}"
        )
    rope = value.get("rope_parameters") or {}
    if rope.get("rope_type") not in ("default", "yarn"):
        raise UserError(f"{where}: rope_parameters must name the rope_type 'default' or 'yarn'")
    fixed = {"attention_bias": True, "swiglu_alpha": ALPHA, "swiglu_limit": LIMIT}
    for key, expected in fixed.items():
        if value.get(key, expected) != expected:
            raise UserError(f"{where}: {key} is {value[key]}, only {expected} is known")
    try:
        config = ModelConfig(
            vocab_size=value["vocab_size"],
            n_embd=value["hidden_size"],
            n_layer=value["num_hidden_layers"],
            n_head=value["num_attention_heads"],
            n_kv_head=value["num_key_value_heads"],
            head_dim=value["head_dim"],
            n_experts=value["num_local_experts"],
            experts_per_token=value["num_experts_per_tok"],
            expert_hidden=value["intermediate_size"],
            block_size=value["max_position_embeddings"],
            sliding_window=value["sliding_window"],
            layer_types=tuple(value["layer_types"]),
            norm_eps=value["rms_norm_eps"],
            tie_embeddings=value["tie_word_embeddings"],
            rope=RopeConfig(
                kind=rope["rope_type"],
                theta=rope["rope_theta"],
                **({} if rope["rope_type"] == "default" else _yarn(rope)),
            ),
        )
    except KeyError as missing:
        raise UserError(f"{where}: the key {missing} is missing") from None
    for f in dataclasses.fields(config):
        number = getattr(config, f.name)
        if f.type in (int, "int") and (not isinstance(number, int) or number < 1):
            raise UserError(f"{where}: {f.name} is {number!r}, expected a whole number above 0")
    if config.block_size > LONGEST_BLOCK:
        raise UserError(
            f"{where}: a context of {config.block_size} tokens is beyond the {LONGEST_BLOCK} that we can hold"
        )
    if len(config.layer_types) != config.n_layer or not set(config.layer_types) <= {SLIDING, FULL}:
        raise UserError(f"{where}: layer_types must list {config.n_layer} times {SLIDING!r} or {FULL!r}")
    if config.n_head % config.n_kv_head or config.experts_per_token > config.n_experts or config.head_dim % 2:
        raise UserError(f"{where}: heads or experts do not fit each other")
    return config


def _yarn(rope: dict[str, Any]) -> dict[str, Any]:
    return {
        "factor": rope["factor"],
        "original_context": rope["original_max_position_embeddings"],
        "beta_fast": rope.get("beta_fast", 32.0),
        "beta_slow": rope.get("beta_slow", 1.0),
        "truncate": rope.get("truncate", True),
    }


def to_tensors(model: Decoder) -> dict[str, Tensor]:
    """The weights under their GPT-OSS names, as copies on the CPU in float32; gate and up interleaved."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().to("cpu", torch.float32)
        if "gate_up_proj" in name:
            tensor = torch.stack(tensor.chunk(2, dim=-1), dim=-1).flatten(-2)
        tensors[name if name.startswith("lm_head") else f"model.{name}"] = tensor.clone().contiguous()
    return tensors


def from_tensors(model: Decoder, tensors: dict[str, Tensor], where: str = WEIGHTS, assign: bool = False) -> None:
    """Load weights that have GPT-OSS names into a model; `assign`: the tensors become its parameters, in float32.

    Raises `UserError` if one is missing or misshapen.
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
        if "gate_up_proj" in name:
            tensor = torch.cat((tensor[..., 0::2], tensor[..., 1::2]), dim=-1)
        state[name] = tensor.float()
    model.load_state_dict(state, assign=assign)
    if model.config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight


def write_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write `model.safetensors`, whole or not at all."""
    with replacing(folder / WEIGHTS) as draft:
        try:
            save_file(tensors, draft, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:  # a full disk, for one
            raise UserError(f"{folder / WEIGHTS}: cannot be written ({error})") from None


def write_config(folder: Path, config: ModelConfig, eod_id: int, unseen: list[int], facts: dict[str, Any]) -> None:
    """Write `config.json` and `generation_config.json`. Tokens never seen in training are suppressed when writing."""
    write_json(folder / CONFIG, to_json(config, eod_id, facts))
    generation = {"do_sample": True, "temperature": 0.8, "max_new_tokens": 400, "suppress_tokens": unseen}
    ids = {"bos_token_id": eod_id, "eos_token_id": eod_id, "pad_token_id": eod_id}
    write_json(folder / GENERATION, {**ids, **generation})


def read_json(path: Path) -> Any:
    """A JSON file, or a `UserError` that says why not."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
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
    with torch.device("meta"):  # shapes only: the file's tensors become the weights, and nothing is drawn at random
        model = Decoder(config)
    from_tensors(model, tensors, str(folder / WEIGHTS), assign=True)
    model.compute_rotary()
    return model.to(device).eval()


def read_suppressed(folder: Path) -> list[int]:
    """Tokens that are never to be written (`suppress_tokens`); none if the folder does not say."""
    path = folder / GENERATION
    value = read_json(path) if path.is_file() else {}
    suppressed = (value.get("suppress_tokens") if isinstance(value, dict) else None) or []
    if not isinstance(suppressed, list) or not all(isinstance(i, int) and i >= 0 for i in suppressed):
        raise UserError(f"{path}: suppress_tokens must be a list of token ids")
    return suppressed
