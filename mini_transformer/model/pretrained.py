"""The model folder: a Hugging Face checkpoint that `GptOssForCausalLM` opens as is.

`config.json` follows the GptOss schema in the one profile that `transformers`, llama.cpp, Ollama and vLLM all accept;
our own metadata is under the key "mini_transformer". Reading takes any GPT-OSS configuration, never runs code from the
folder, and says in one line what is wrong with a folder that does not fit.
"""

from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mini_transformer import __version__
from mini_transformer.checksums import check, replacing_listed
from mini_transformer.config import FULL, SLIDING, ModelConfig, RopeConfig
from mini_transformer.errors import UserError
from mini_transformer.files import disk_error, read_json, write_json
from mini_transformer.model.decoder import Decoder, meta_decoder
from mini_transformer.model.swiglu import SWIGLU_ALPHA, SWIGLU_LIMIT

CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"
BASE = Path(__file__).parent.parent / "base"  # the model that comes with the package; see docs/base.md
FORMAT = 1  # of our own metadata; raised when an older version could no longer read the folder
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # all of them are <|endoftext|>
MAX_BLOCK_SIZE = 2**20
MAX_INTEGER = 2**40  # of any other size in `config.json`
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
ROPE_KEYS = {  # the same of `RopeConfig`; plain rotary has only the first
    "theta": "rope_theta",
    **{name: name for name in ("factor", "beta_fast", "beta_slow", "truncate")},
    "original_context": "original_max_position_embeddings",
}
LIMITS: dict[str, tuple[float, float]] = {  # of sizes and other numbers, inclusive
    "max_position_embeddings": (2, MAX_BLOCK_SIZE),
    "rms_norm_eps": (1e-12, 1),
    "rope_theta": (2, 1e12),
    "factor": (1, 1e6),
    "beta_fast": (1e-6, 1e6),
    "beta_slow": (1e-6, 1e6),
}
DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}  # those of `transformers`
SWIGLU = {"swiglu_alpha": SWIGLU_ALPHA, "swiglu_limit": SWIGLU_LIMIT}


def _rope_keys(rope_type: str) -> dict[str, str]:
    return ROPE_KEYS if rope_type == "yarn" else {"theta": ROPE_KEYS["theta"]}


def config_to_json(config: ModelConfig, eot_id: int, metadata: dict[str, Any]) -> dict[str, Any]:
    """The content of `config.json`. Weights are always written untied, as llama.cpp and vLLM need them."""
    rope = {key: getattr(config.rope, name) for name, key in _rope_keys(config.rope.kind).items()}
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "dtype": "float32",
        **{key: getattr(config, name) for name, key in SIZE_KEYS.items()},
        "layer_types": list(config.layer_types),
        "rope_parameters": {"rope_type": config.rope.kind, **rope},
        "rms_norm_eps": config.norm_eps,
        **SWIGLU,
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


def config_from_json(values: Any, where: str = CONFIG) -> ModelConfig:
    """The model that a `config.json` describes. Raises `UserError` if it is not a GPT-OSS model that we can run."""
    values = values if isinstance(values, dict) else {}
    _check_kind(values, where)
    keys = SIZE_KEYS | {"norm_eps": "rms_norm_eps", "tie_embeddings": "tie_word_embeddings"}
    given = _read(ModelConfig, keys, values, where)
    kinds, layers = values.get("layer_types"), given["n_layer"]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in (SLIDING, FULL) for kind in kinds):
        raise UserError(f"{where}: layer_types must list {layers} times {SLIDING!r} or {FULL!r}")
    config = ModelConfig(**given, layer_types=tuple(kinds), rope=_read_rope(values, where))
    if config.n_head % config.n_kv_head or config.experts_per_token > config.n_experts or config.head_dim % 2:
        raise UserError(f"{where}: heads or experts do not fit each other")
    return config


def _check_kind(values: dict[str, Any], where: str) -> None:
    """Refuse another architecture, another format of our metadata, and variants of GPT-OSS that we do not compute."""
    kind, own = values.get("model_type"), values.get("mini_transformer") or {}
    if kind != "gpt_oss":
        raise UserError(f"{where}: model_type is {brief(kind)}; only 'gpt_oss' models can be read")
    if not isinstance(own, dict):
        raise UserError(f"{where}: mini_transformer is {brief(own)}, expected an object or no such key")
    if (has := own.get("format", FORMAT)) != FORMAT:
        raise UserError(f"{where}: it has format {brief(has)}, this version of Mini-Transformer reads format {FORMAT}")
    for key, expected in {"attention_bias": True, **SWIGLU}.items():
        if (found := values.get(key, expected)) != expected:
            raise UserError(f"{where}: {key} is {brief(found)}, only {expected} is known")


def _read(part: type, keys: dict[str, str], values: dict[str, Any], where: str) -> dict[str, Any]:
    """Fields of a dataclass from untrusted JSON. Raises `UserError` for another type than the field's default has."""
    fields = {}
    for name, key in keys.items():
        if key not in values and key not in DEFAULTS:
            raise UserError(f"{where}: the key {key!r} is missing")
        value: Any = DEFAULTS.get(key) if values.get(key) is None else values[key]
        kind, (least, most) = type(getattr(part, name)), LIMITS.get(key, (1, MAX_INTEGER))
        accepted = (int, float) if kind is float else (kind,)  # by `type`: a bool is an int too
        if type(value) not in accepted or not (kind is bool or least <= value <= most):
            limits = f"number from {least:g} to {most:g}" if kind is float else f"whole number from {least} to {most}"
            raise UserError(
                f"{where}: {key} is {brief(value)}, expected {'true or false' if kind is bool else f'a {limits}'}"
            )
        fields[name] = kind(value)
    return fields


def _read_rope(values: dict[str, Any], where: str) -> RopeConfig:
    """Rotary positions as transformers 5 spells them (`rope_parameters`) or 4 (`rope_scaling` beside `rope_theta`)."""
    new, old = values.get("rope_parameters"), values.get("rope_scaling")
    key, rope = ("rope_parameters", new) if old is None else ("rope_scaling", old)  # as transformers, given both
    if rope is None and "rope_scaling" in values:  # null in transformers 4 means plain rotary
        rope = {"rope_type": "default"}
    if not isinstance(rope, dict) or rope.get("rope_type") not in ("default", "yarn"):
        raise UserError(f"{where}: {key} must name the rope_type 'default' or 'yarn'")
    kind, beside = rope["rope_type"], {"rope_theta": values["rope_theta"]} if "rope_theta" in values else {}
    return RopeConfig(kind, **_read(RopeConfig, _rope_keys(kind), beside | rope, f"{where}: {key}"))


def export_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of a model's state on the CPU, in float32, under its GPT-OSS names and with gate and up interleaved."""
    tensors = {}
    for name, tensor in state.items():
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
        if (tensor := tensors.get(key)) is None:
            raise UserError(f"{where}: the tensor {key} is missing")
        if tensor.shape != own.shape:
            raise UserError(f"{where}: {key} has the shape {tuple(tensor.shape)}, {CONFIG} asks for {tuple(own.shape)}")
        if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
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
    """Write `model.safetensors`, whole or not at all. Raises `OSError` if it cannot be written."""
    with replacing_listed(folder / WEIGHTS) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:  # a full disk, for example
            raise disk_error(error, folder / WEIGHTS) or error from None


def write_config(
    folder: Path, config: ModelConfig, eot_id: int, suppress_tokens: list[int], metadata: dict[str, Any]
) -> None:
    """Write `config.json` and `generation_config.json`. `suppress_tokens` are the ids that are never generated."""
    write_json(folder / CONFIG, config_to_json(config, eot_id, metadata), replacing_listed)
    generation = {"do_sample": True, "temperature": 0.8, "max_new_tokens": 400, "suppress_tokens": suppress_tokens}
    write_json(folder / GENERATION, {**dict.fromkeys(SPECIAL_TOKENS, eot_id), **generation}, replacing_listed)


def model_folder(name: Path) -> Path:
    """The folder of a model: `base` is the one of the package, unless there is a folder of that name."""
    return BASE if name == Path("base") and not name.exists() else name


def read_model(folder: Path, device: torch.device) -> Decoder:
    """The model of a folder, in float32 and evaluation mode. Raises `UserError` if there is none, or it is damaged."""
    if folder.is_file():
        raise UserError(f"{folder}: is a file; name the folder of the model")
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such model folder; train.py `out_dir` {folder} makes one")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing: there is no model here (yet)")
        check(folder / name)
    config = config_from_json(read_json(folder / CONFIG), str(folder / CONFIG))
    try:
        tensors = load_file(folder / WEIGHTS)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{folder / WEIGHTS}: damaged or incomplete ({error!s:.200})") from None
    if config.n_layer > len(tensors):
        raise UserError(f"{folder / WEIGHTS}: holds no {config.n_layer} layers, as {CONFIG} says")
    try:
        model = meta_decoder(config)  # the file's tensors become the weights
    except RuntimeError:
        raise UserError(f"{folder / CONFIG}: sizes too large for any tensor; {WEIGHTS} cannot hold them") from None
    import_weights(model, tensors, str(folder / WEIGHTS), assign=True)
    model.compute_rotary()
    return model.to(device).eval()


def read_suppress_tokens(folder: Path) -> list[int]:
    """Token ids that are never generated; none if the folder does not say. Raises `UserError` for other than ids."""
    path = folder / GENERATION
    check(path)
    value = read_json(path) if path.is_file() else {}
    ids = (value.get("suppress_tokens") if isinstance(value, dict) else None) or []
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
        raise UserError(f"{path}: suppress_tokens must be a list of token ids")
    return ids
