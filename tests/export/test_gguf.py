"""The GGUF file: its content by the `gguf` package, and what llama.cpp makes of it where it is installed."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from mini_transformer.config import FULL, SLIDING, ModelConfig, RopeConfig
from mini_transformer.errors import UserError
from mini_transformer.export.gguf import write_gguf
from mini_transformer.model.decoder import Decoder
from mini_transformer.text.tokenizer import Tokenizer
from tests.conftest import FABLES, TINY

TEXT = "Ž 日 🦊 l'été, « là » !\n\n\n  x\t42 Un renard"


def noisy(config: ModelConfig) -> Decoder:
    """A model in which biases, sinks and router all show."""
    torch.manual_seed(0)
    model = Decoder(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer.train_bpe([FABLES.read_text(encoding="utf-8")[:50_000]], 400)


@pytest.fixture
def model(bpe: Tokenizer) -> Decoder:
    config = ModelConfig(n_layer=3, n_embd=64, n_head=4, n_kv_head=2, block_size=48, sliding_window=8, expert_hidden=40)
    return noisy(config.resolve(bpe.vocab_size + 3))


def write(path: Path, model: Decoder, tokenizer: Tokenizer, kind: str = "f32") -> gguf.GGUFReader:
    write_gguf(path, model.config, tokenizer, model.state_dict(), kind)
    return gguf.GGUFReader(path)


def values(reader: gguf.GGUFReader) -> dict[str, np.ndarray]:
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}


def test_every_weight_is_there(model: Decoder, bpe: Tokenizer, tmp_path: Path) -> None:
    found = values(write(tmp_path / "model.gguf", model, bpe))
    state = model.state_dict()
    assert sum(tensor.size for tensor in found.values()) == sum(tensor.numel() for tensor in state.values())
    for layer in range(3):
        experts = {name: state[f"layers.{layer}.mlp.experts.{name}"].numpy() for name in ("gate_up_proj", "down_proj")}
        gate, up = np.split(experts["gate_up_proj"], 2, axis=-1)
        for name, weight_eio in {"gate": gate, "up": up, "down": experts["down_proj"]}.items():
            np.testing.assert_array_equal(found[f"blk.{layer}.ffn_{name}_exps.weight"], weight_eio.transpose(0, 2, 1))
        sinks = state[f"layers.{layer}.self_attn.sinks"].numpy()
        np.testing.assert_array_equal(found[f"blk.{layer}.attn_sinks.weight"], sinks)
    np.testing.assert_array_equal(found["output.weight"], state["lm_head.weight"].numpy())


def test_shape_and_tokens(model: Decoder, bpe: Tokenizer, tmp_path: Path) -> None:
    reader = write(tmp_path / "model.gguf", model, bpe)
    field = {name: value.contents() for name, value in reader.fields.items()}
    assert field["general.architecture"] == "gpt-oss"
    assert [field[f"gpt-oss.{name}"] for name in ("context_length", "attention.sliding_window")] == [48, 8]
    tokens = field["tokenizer.ggml.tokens"]
    assert tokens[:-3] == [bpe.backend.id_to_token(i) for i in range(bpe.vocab_size)]
    assert tokens[-1] == f"[unused {len(tokens) - 1}]"
    types = field["tokenizer.ggml.token_type"]
    assert types[0] == gguf.TokenType.CONTROL
    assert types[-3:] == [gguf.TokenType.UNUSED] * 3
    assert set(types[1:-3]) == {gguf.TokenType.NORMAL}


@pytest.mark.parametrize(("kind", "precision"), [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 8e-3)])
def test_smaller_types(model: Decoder, bpe: Tokenizer, tmp_path: Path, kind: str, precision: float) -> None:
    exact = values(write(tmp_path / "exact.gguf", model, bpe))
    reader = write(tmp_path / "small.gguf", model, bpe, kind)
    types = {t.name: t.tensor_type.name.lower() for t in reader.tensors}
    assert types["blk.0.attn_q.weight"] == types["token_embd.weight"] == kind
    assert types["blk.0.ffn_down_exps.weight"] == ("f16" if kind == "q8_0" else kind)  # its rows have 40 numbers
    kept = ("ffn_gate_inp.weight", "ffn_up_exps.bias", "attn_norm.weight")
    assert {types[f"blk.0.{name}"] for name in kept} == {"f32"}
    for name, found in values(reader).items():
        assert np.abs(found - exact[name]).max() <= precision * np.abs(exact[name]).max(), name


def test_what_llama_cpp_cannot_be_told_is_refused(model: Decoder, bpe: Tokenizer, tmp_path: Path) -> None:
    def refused(tokenizer: Tokenizer = bpe, **changes: object) -> str:
        config = dataclasses.replace(model.config, **changes)
        with pytest.raises(UserError) as caught:
            write_gguf(tmp_path / "model.gguf", config, tokenizer, model.state_dict())
        assert not list(tmp_path.iterdir())
        return str(caught.value)

    assert "every other layer" in refused(layer_types=(FULL, SLIDING, FULL))
    assert "YaRN" in refused(rope=RopeConfig(factor=4.0, truncate=False))
    content = json.loads(bpe.backend.to_str())
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    assert "another way" in refused(Tokenizer.from_json(json.dumps(content).encode(), "a stranger's"))


def test_without_its_package_a_run_goes_on(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    words = ("--data", FABLES, *TINY, "--max-iters", 2, "--out-dir", tmp_path / "out")
    code, out, _ = call("train", *words)
    assert code == 0
    assert "No model.gguf: the Python package 'gguf' is missing: pip install gguf\n" in out
    assert not (tmp_path / "out" / "model.gguf").exists()


def test_layers_without_windows_get_the_context_as_theirs(model: Decoder, bpe: Tokenizer, tmp_path: Path) -> None:
    config = dataclasses.replace(model.config, layer_types=(FULL,) * 3)
    write_gguf(tmp_path / "model.gguf", config, bpe, model.state_dict())
    assert gguf.GGUFReader(tmp_path / "model.gguf").fields["gpt-oss.attention.sliding_window"].contents() == 48


def test_training_writes_it_and_the_command_does(
    trained: Path, call: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = call("gguf", "--model-dir", trained, "--out", tmp_path / "again.gguf")
    assert (code, out[: len(str(tmp_path))]) == (0, str(tmp_path))
    assert (tmp_path / "again.gguf").read_bytes() == (trained / "model.gguf").read_bytes()
    folder = shutil.copytree(trained, tmp_path / "out")
    assert call("gguf", "--model-dir", folder, "--type", "q8_0")[0] == 0
    assert (folder / "model-q8_0.gguf").stat().st_size < (folder / "model.gguf").stat().st_size
    code, _, err = call("gguf", "--model-dir", folder, "--out", tmp_path / "no" / "model.gguf")
    assert (code, err.count("\n"), "cannot be written" in err) == (2, 1, True)
    assert call("gguf", "--model-dir", tmp_path / "nothing")[0] == 2
    weights = (folder / "model.safetensors").read_bytes()
    code, _, err = call("gguf", "--model-dir", folder, "--out", folder / "model.safetensors")
    assert (code, err) == (
        2,
        f"gguf: --out: {folder / 'model.safetensors'} is there, and no GGUF file; choose another name\n",
    )
    assert (folder / "model.safetensors").read_bytes() == weights
    monkeypatch.chdir(tmp_path)
    assert call("gguf", "--model-dir", "base")[0] == 0
    assert (tmp_path / "model-f32.gguf").stat().st_size > 10e6


def llama_logits(path: Path, ids: list[int]) -> np.ndarray:
    """The logits (T, V) that llama.cpp has in float32."""
    llama_cpp = pytest.importorskip("llama_cpp")
    settings = dict(n_ctx=0, logits_all=True, flash_attn=False, type_k=0, type_v=0, n_threads=1, verbose=False)
    llama = llama_cpp.Llama(str(path), **settings)
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)])


@pytest.mark.parametrize("changes", [{}, {"n_experts": 1, "experts_per_token": 1}, {"layer_types": (FULL,) * 3}])
def test_llama_cpp_computes_the_same(
    model: Decoder, bpe: Tokenizer, tmp_path: Path, changes: dict[str, object]
) -> None:
    model = noisy(dataclasses.replace(model.config, **changes))
    write(tmp_path / "model.gguf", model, bpe)
    ids = np.random.default_rng(0).integers(bpe.vocab_size, size=40).tolist()
    expected = model(torch.tensor([ids]))[0].numpy()
    found = llama_logits(tmp_path / "model.gguf", ids)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["characters", "ASCII", "BPE"])
def test_llama_cpp_has_the_same_tokens(model: Decoder, bpe: Tokenizer, tmp_path: Path, kind: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    tokenizer = bpe if kind == "BPE" else Tokenizer.from_characters([TEXT if kind == "characters" else "no merges"])
    write_gguf(tmp_path / "model.gguf", model.config, tokenizer, model.state_dict())
    llama = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    for text in (TEXT, FABLES.read_text(encoding="utf-8")[:5_000]):
        ids = llama.tokenize(text.encode())
        assert ids == [tokenizer.eot_id, *tokenizer.encode(text)]
        assert llama.detokenize(ids[1:]).decode() == text


def test_a_tokenizer_without_merges_gets_one(model: Decoder, tmp_path: Path) -> None:
    reader = write(tmp_path / "model.gguf", model, Tokenizer.from_characters(["ASCII"]))
    assert reader.fields["tokenizer.ggml.merges"].contents() == ["ÿ ÿ"]  # without any, llama.cpp refuses the file
