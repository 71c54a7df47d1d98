"""The decoder's step for one token of one text, in NumPy: equal to the model's, without torch's dispatcher.

A step reads each weight once and computes little with it, so that in a small model calling costs more than computing.
Here buffers and views are made once; weights and cache are the model's own memory where their layout allows it.

Axes: C channels, H query heads, G key/value heads, M query heads for each of those, D head size, S tokens of the cache,
E experts, K chosen experts, F hidden size of an expert, V vocabulary.
"""

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mini_transformer.model.attention import KVCache
from mini_transformer.model.decoder import Block, Decoder
from mini_transformer.model.swiglu import SWIGLU_ALPHA, SWIGLU_LIMIT

Array = NDArray[np.float32]
# as arrays, which NumPy takes quicker than Python's numbers
ONE, LIMIT, MINUS_LIMIT = (np.array(x, np.float32) for x in (1, SWIGLU_LIMIT, -SWIGLU_LIMIT))
MINUS_ALPHA = np.array(-SWIGLU_ALPHA, np.float32)


def fits(model: Decoder) -> bool:
    """Whether `SingleRow` can take the step: the weights are float32, on the CPU and whole, and nothing is dropped."""
    return not model.training and all(
        type(p.data) is Tensor and p.device.type == "cpu" and p.dtype is torch.float32 for p in model.parameters()
    )


def array(tensor: Tensor) -> Array:
    """The same memory as an array."""
    return tensor.detach().numpy()


def transposed(matrix: Array) -> Array:
    """A copy of a matrix with its axes exchanged."""
    return np.ascontiguousarray(matrix.T)


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer; queries, keys and values are one matrix.

    Matrices are (inputs, outputs): in this layout BLAS reads memory up to twice as fast.
    """

    attention_norm: Array  # (C)
    qkv: Array  # (C, (H + 2 G) D)
    qkv_bias: Array  # (H + 2 G, D)
    sinks: Array  # (G, M)
    out: Array  # (H D, C)
    out_bias: Array
    expert_norm: Array  # (C)
    router: Array  # (C, E)
    router_bias: Array
    gate_up: Array  # (E, C, 2 F)
    gate_up_bias: Array
    down: Array  # (E, F, C)
    down_bias: Array

    @classmethod
    def of(cls, block: Block) -> "LayerWeights":
        """Those of a layer of the model: copies of what is laid out otherwise, the same memory of the experts."""
        attention, router, experts = block.self_attn, block.mlp.router, block.mlp.experts
        D = attention.head_dim
        G = len(attention.k_proj.weight) // D
        q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
        return cls(
            array(block.input_layernorm.weight),
            transposed(np.concatenate((array(q.weight), array(k.weight), array(v.weight)))),
            np.concatenate((array(q.bias), array(k.bias), array(v.bias))).reshape(-1, D),
            array(attention.sinks).reshape(G, -1),
            transposed(array(attention.o_proj.weight)),
            array(attention.o_proj.bias),
            array(block.post_attention_layernorm.weight),
            transposed(array(router.weight)),
            array(router.bias),
            array(experts.gate_up_proj),
            array(experts.gate_up_proj_bias),
            array(experts.down_proj),
            array(experts.down_proj_bias),
        )

    def arrays(self) -> tuple[Array, ...]:
        """All of them, in the order above."""
        return tuple(getattr(self, f.name) for f in fields(self))


class SingleRow:
    """Takes the step of a model that `fits` with one token, on a cache that both share.

    The weights are those that the model has now: it is to be made anew after they have changed.
    """

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        config = self.config = model.config
        self.cache = cache
        self.embed, self.lm_head = array(model.embed_tokens.weight), transposed(array(model.lm_head.weight))
        self.norm = array(model.norm.weight)
        self.layers = [LayerWeights.of(block) for block in model.layers if isinstance(block, Block)]
        self.keys, self.values = (list(array(x[:, 0])) for x in (cache.keys, cache.values))  # of a layer: (G, S, D)
        self.windows = [config.window(layer) for layer in range(config.n_layer)]
        cos, sin = array(model.get_buffer("cos")), array(model.get_buffer("sin"))
        self.cos = np.concatenate((cos, cos), axis=-1)  # (S, D)
        self.sin = np.stack((-sin, sin), axis=1)  # (S, 2, D/2)
        G, M, D = config.n_kv_head, config.n_head // config.n_kv_head, config.head_dim
        F = config.expert_hidden
        self.scales = np.ones((G * M + G, 1, 1), np.float32)  # of the queries, for which keys are not scaled
        self.scales[: G * M] = D**-0.5
        self.x, self.normed, self.part = (np.empty(config.n_embd, np.float32) for _ in range(3))
        self.scale = np.empty((), np.float32)
        self.qkv = np.empty((G * M + 2 * G, D), np.float32)
        self.halves, self.sin_now = (np.empty((G * M + G, 2, D // 2), np.float32) for _ in range(2))
        self.cos_now = np.empty((G * M + G, D), np.float32)
        self.scores = np.empty((G, M, config.block_size + 1), np.float32)
        self.top, self.mixed = np.empty((G, M, 1), np.float32), np.empty((G, M, D), np.float32)
        self.gate_up, self.hidden = np.empty(2 * F, np.float32), np.empty(F, np.float32)
        self.gate_and_up = self.gate_up[:F], self.gate_up[F:]

    @np.errstate(over="ignore", invalid="ignore")  # exp of a gate far below 0 is infinite, and its sigmoid 0
    def step(self, token: int) -> Array:
        """The logits (V,) after one more token, which is added to the cache."""
        np.copyto(self.x, self.embed[token])
        (position,) = self.cache.lengths
        np.multiply(self.cos[position], self.scales[:, 0], self.cos_now)
        np.multiply(self.sin[position], self.scales, self.sin_now)
        for number in range(len(self.layers)):
            self._add_layer(number)
        self.cache.lengths = [position + 1]
        return self._read_logits()

    def _add_layer(self, number: int) -> None:
        """Add a layer's attention and experts to the residual stream."""
        layer = self.layers[number]
        self._add_attention(number, layer)
        self._add_experts(layer)

    def _read_logits(self) -> Array:
        """The logits (V,) of the residual stream."""
        return np.dot(self._normalise(self.norm), self.lm_head)

    def _normalise(self, weight: Array) -> Array:
        """RMSNorm of the residual stream."""
        x, normed = self.x, self.normed
        self.scale[()] = 1 / math.sqrt(x.dot(x) / len(x) + self.config.norm_eps)
        np.multiply(x, weight, normed)
        normed *= self.scale
        return normed

    def _add_attention(self, number: int, layer: LayerWeights) -> None:
        """Add the attention of a layer to the stream; its keys and values go to the cache."""
        qkv, scores, top, mixed, part = self.qkv, self.scores, self.top, self.mixed, self.part
        keys, values = self.keys[number], self.values[number]
        G, M, D = mixed.shape
        rotated, end = G * M + G, self.cache.lengths[0] + 1
        start = max(0, end - self.windows[number])

        np.dot(self._normalise(layer.attention_norm), layer.qkv, qkv.reshape(-1))
        qkv += layer.qkv_bias
        qk = qkv[:rotated]  # each half by the cosines, plus the other half by the sines
        np.multiply(qk.reshape(rotated, 2, -1)[:, ::-1], self.sin_now, self.halves)
        qk *= self.cos_now
        qk += self.halves.reshape(rotated, D)
        keys[:, end - 1] = qk[G * M :]
        values[:, end - 1] = qkv[rotated:]

        scores = scores[:, :, : end - start + 1]  # the sink is the first of them, and has no value
        scores[:, :, 0] = layer.sinks
        np.matmul(qkv[: G * M].reshape(G, M, D), keys[:, start:end].swapaxes(1, 2), scores[:, :, 1:])
        scores -= np.maximum.reduce(scores, -1, out=top, keepdims=True)
        np.exp(scores, scores)
        np.matmul(scores[:, :, 1:], values[:, start:end], mixed)
        mixed /= np.add.reduce(scores, -1, out=top, keepdims=True)
        np.dot(mixed.reshape(-1), layer.out, part)
        part += layer.out_bias
        self.x += part

    def _add_experts(self, layer: LayerWeights) -> None:
        """Add the chosen experts of a layer to the stream."""
        normed, gate_up, hidden, part = self._normalise(layer.expert_norm), self.gate_up, self.hidden, self.part
        gate, up = self.gate_and_up
        for expert, weight in zip(*self._route(layer), strict=True):
            np.dot(normed, layer.gate_up[expert], gate_up)
            gate_up += layer.gate_up_bias[expert]
            np.minimum(gate_up, LIMIT, out=gate_up)
            np.maximum(up, MINUS_LIMIT, out=up)
            up += ONE
            up *= gate
            gate *= MINUS_ALPHA
            np.exp(gate, hidden)
            hidden += ONE
            np.divide(up, hidden, hidden)
            np.dot(hidden, layer.down[expert], part)
            part += layer.down_bias[expert]
            part *= weight
            self.x += part

    def _route(self, layer: LayerWeights) -> tuple[list[int], list[float]]:
        """The K experts with the highest logits, and the softmax over those."""
        if len(layer.router_bias) == 1:
            return [0], [1.0]
        logits = (np.dot(self.normed, layer.router) + layer.router_bias).tolist()
        chosen = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[: self.config.experts_per_token]
        powers = [math.exp(logits[expert] - logits[chosen[0]]) for expert in chosen]
        total = sum(powers)
        return chosen, [power / total for power in powers]
