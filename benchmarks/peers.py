"""The models that `train_speed.py` compares, each with its loss: as many active parameters, no dropout."""

import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mini_transformer.config import ModelConfig
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.pretrained import config_to_json
from mini_transformer.training.losses import cross_entropy_sum

BLOCK, VOCABULARY = 256, 128
SHAPES = {"4x128": (4, 128, 4, 16), "4x192": (4, 192, 6, 16), "24x512": (24, 512, 8, 4)}  # layers, width, heads, batch
Loss = Callable[[Tensor, Tensor], Tensor]


def config_of_ours(shape: str, experts: int) -> ModelConfig:
    """The shape of our model."""
    layers, width, heads, _ = SHAPES[shape]
    return ModelConfig(BLOCK, layers, width, heads, n_experts=experts, dropout=0.0).resolve(VOCABULARY)


def ours(shape: str, experts: int) -> tuple[nn.Module, Loss]:
    """Our model and its loss."""
    model = Decoder(config_of_ours(shape, experts))
    return model, lambda x, y: cross_entropy_sum(model, x, y)[0] / y.numel()


def gpt_oss(shape: str, experts: str) -> tuple[nn.Module, Loss]:
    """The same model by `transformers`, with random weights."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = config_of_ours(shape, 4)
    values = {k: v for k, v in config_to_json(config, 0, {}).items() if k not in ("architectures", "model_type")}
    theirs = GptOssConfig(**values, attn_implementation="eager", experts_implementation=experts)
    model = GptOssForCausalLM(theirs)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model(x, use_cache=False).logits.flatten(0, 1), y.flatten())

    return model, loss


def nanogpt(shape: str, checkout: Path) -> tuple[nn.Module, Loss]:
    """nanoGPT's model, without biases, as its training configuration has it."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    layers, width, heads, _ = SHAPES[shape]
    config = module.GPTConfig(BLOCK, VOCABULARY, layers, heads, width, dropout=0.0, bias=False)
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(config)
    return model, lambda x, y: model(x, y)[1]
