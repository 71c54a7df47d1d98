"""GGUF: the model and its tokenizer in one file, which llama.cpp, Ollama and LM Studio open.

Weights, biases, sinks and shapes go over as they are: llama.cpp has the architecture of GPT-OSS under the name
"gpt-oss". What it cannot be told is refused: layers whose window follows another pattern than its own, YaRN with
fractional borders, and a tokenizer that splits words in another way than GPT-OSS's. The `gguf` package of the
llama.cpp project writes the file.
"""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mini_transformer.config import FULL, SLIDING, ModelConfig
from mini_transformer.errors import UserError
from mini_transformer.files import replacing
from mini_transformer.text.tokenizer import PRE_TOKENIZER_PATTERN, Tokenizer

NAMES = {  # of a layer's tensors, here and there; norms, biases, sinks and the router stay float32
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.sinks": "attn_sinks.weight",
    "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate_up_proj": "ffn_{}_exps.weight",
    "mlp.experts.gate_up_proj_bias": "ffn_{}_exps.bias",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    "mlp.experts.down_proj_bias": "ffn_down_exps.bias",
}
OUTSIDE = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}


def write_gguf(
    path: Path, config: ModelConfig, tokenizer: Tokenizer, state: dict[str, Tensor], kind: str = "f32"
) -> None:
    """Write a model's state and its tokenizer, whole or not at all.

    `kind`: the type of the matrices, f32, f16, bf16 or q8_0; those that q8_0 does not fit, which takes 32 numbers of a
    row at a time, are f16 then. Raises `UserError` if llama.cpp would compute or split words in another way or the
    package is missing, and `OSError` if it cannot be written.
    """
    try:
        import gguf
    except ModuleNotFoundError:  # an environment of before; a run need not end for it
        raise UserError("the Python package 'gguf' is missing: pip install gguf") from None
    types = gguf.GGMLQuantizationType
    file_type = "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "gpt-oss")
        writer.add_file_type(gguf.LlamaFileType[file_type])
        add: dict[type, Any] = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        for key, value in _shape(config).items():
            add[type(value)](f"gpt-oss.{key}", value)
        _add_tokenizer(writer, tokenizer, config.vocab_size)
        for name, tensor in _tensors(state):
            values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
            is_matrix = values.ndim > 1 and not name.endswith("bias") and "ffn_gate_inp" not in name
            fits = is_matrix and (kind != "q8_0" or values.shape[-1] % 32 == 0)
            raw = types[kind.upper()] if fits else types.F16 if is_matrix else types.F32
            writer.add_tensor(name, gguf.quantize(values, raw), raw_dtype=raw)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        except OSError as error:  # NumPy gives a full disk no number
            number = error.errno or errno.ENOSPC
            raise OSError(number, os.strerror(number), str(path)) from None
        finally:
            writer.close()


def _shape(config: ModelConfig) -> dict[str, int | float | str]:
    """What llama.cpp is told of the model, by its keys."""
    rope, D = config.rope, config.head_dim
    shape: dict[str, int | float | str] = {
        "context_length": config.block_size,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.expert_hidden,
        "expert_feed_forward_length": config.expert_hidden,
        "expert_count": config.n_experts,
        "expert_used_count": config.experts_per_token,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.n_kv_head,
        "attention.key_length": D,
        "attention.value_length": D,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "attention.sliding_window": _window(config),
        "rope.freq_base": rope.theta,
    }
    if rope.kind != "yarn":
        return shape
    if rope.factor != 1.0 and not rope.truncate:
        raise UserError("llama.cpp computes YaRN with truncate=false otherwise; the model cannot be exported to it")
    return shape | {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": rope.factor,
        "rope.scaling.original_context_length": rope.original_context,
        "rope.scaling.yarn_beta_fast": rope.beta_fast,
        "rope.scaling.yarn_beta_slow": rope.beta_slow,
    }


def _window(config: ModelConfig) -> int:
    """The window that llama.cpp gives every other layer, the first one included; the context where none has one."""
    every_other = tuple(FULL if layer % 2 else SLIDING for layer in range(config.n_layer))
    if config.sliding_window >= config.block_size or SLIDING not in config.layer_types:
        return config.block_size
    if config.layer_types != every_other:
        raise UserError("llama.cpp has a window in every other layer, from the first one on; the model has other ones")
    return config.sliding_window


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, vocab_size: int) -> None:
    """All tokens, up to the model's vocabulary, and merges; documents begin after `<|endoftext|>`, as in training."""
    import gguf

    content = json.loads(tokenizer.backend.to_str())
    if content["normalizer"] is not None or PRE_TOKENIZER_PATTERN not in _patterns(content["pre_tokenizer"]):
        what = "splits text in another way than GPT-OSS's, the only one that llama.cpp is told"
        raise UserError(f"the tokenizer {what}; the model cannot be exported to it")
    added = tokenizer.backend.get_added_tokens_decoder()
    tokens, types = [], []
    for i in range(vocab_size):
        token = tokenizer.backend.id_to_token(i)
        tokens.append(token or f"[unused {i}]")
        kind = "USER_DEFINED" if i in added else "NORMAL" if token else "UNUSED"
        types.append("CONTROL" if i in added and added[i].special else kind)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre("gpt-4o")  # how GPT-OSS splits text
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType[name] for name in types])
    writer.add_token_merges(merges or ["ÿ ÿ"])  # llama.cpp wants one; no text holds the byte 0xFF
    writer.add_bos_token_id(tokenizer.eot_id)
    writer.add_eos_token_id(tokenizer.eot_id)
    writer.add_add_bos_token(True)


def _patterns(part: Any) -> Iterator[str]:
    """The regular expressions by which a pre-tokenizer splits."""
    if isinstance(part, dict):
        yield from [part["Regex"]] if isinstance(part.get("Regex"), str) else []
        part = list(part.values())
    if isinstance(part, list):
        for item in part:
            yield from _patterns(item)


def _tensors(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The names of llama.cpp and the tensors of a model's state. Experts are (E, outputs, inputs) there."""
    for name, tensor in state.items():
        if not name.startswith("layers."):
            yield OUTSIDE.get(name, "output.weight"), tensor
            continue
        _, layer, rest = name.split(".", 2)
        stem, _, end = rest.rpartition(".")
        new = f"blk.{layer}.{NAMES.get(rest) or f'{NAMES[stem]}.{end}'}"
        parts = tensor.chunk(2, dim=-1) if "{}" in new else (tensor,)
        for part, word in zip(parts, ("gate", "up"), strict=False):
            yield new.format(word), part.transpose(1, 2) if rest.endswith(("up_proj", "down_proj")) else part
