"""The layers of `single_row`, compiled by numba: one call for each layer, large matrices read by all threads.

Axes as in `single_row`.
"""

import math

import numba
import numpy as np
import torch

from mini_transformer.generation.single_row import Array, SingleRow
from mini_transformer.model.attention import KVCache
from mini_transformer.model.decoder import Decoder
from mini_transformer.model.moe import SWIGLU_ALPHA, SWIGLU_LIMIT

LOG2_E, LN_2 = np.float32(math.log2(math.e)), np.float32(math.log(2))
C2, C3, C4, C5, C6, C7 = (np.float32(1 / math.factorial(i)) for i in range(2, 8))  # of the series of e^x
ALPHA, LIMIT, ONE = np.float32(SWIGLU_ALPHA), np.float32(SWIGLU_LIMIT), np.float32(1)
SPLIT_FROM = 1 << 18  # numbers of a matrix that is worth waking the other threads
MAX_THREADS = 8  # more have not been tried
# sums may be reordered, as they must be for vectors; infinities and NaN stay what they are
OPTIONS = {"error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
jit = numba.njit(**OPTIONS)


@jit
def exp(x):
    """e^x to rounding, x cut at ±87: of operations that the compiler turns into vectors, as it cannot a library's."""
    x = min(max(x, np.float32(-87)), np.float32(87))
    n = np.floor(x * LOG2_E + np.float32(0.5))
    r = x - n * LN_2  # within ±ln(2) / 2
    power = ONE + r * (ONE + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * (C6 + r * C7))))))
    return power * np.int32((np.int32(n) + 127) << 23).view(np.float32)  # times 2^n, by its bits


@jit
def add_rows(x, matrix, y):
    """y += x @ matrix, in the order of memory."""
    rows, columns = matrix.shape
    for i in range(0, rows - 7, 8):  # of eight rows at a time, so that y is read and written once for them
        a, b, c, d, e, f, g, h = x[i], x[i + 1], x[i + 2], x[i + 3], x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        for j in range(columns):
            y[j] += (
                a * matrix[i, j]
                + b * matrix[i + 1, j]
                + c * matrix[i + 2, j]
                + d * matrix[i + 3, j]
                + e * matrix[i + 4, j]
                + f * matrix[i + 5, j]
                + g * matrix[i + 6, j]
                + h * matrix[i + 7, j]
            )
    for i in range(rows - rows % 8, rows):
        for j in range(columns):
            y[j] += x[i] * matrix[i, j]


@numba.njit(parallel=True, **OPTIONS)
def add_rows_in_threads(x, matrix, y, sums):
    """The same, each thread with its part of the rows and a sum of its own."""
    rows, columns = matrix.shape
    threads = len(sums)
    for thread in numba.prange(threads):
        start, end = rows * thread // threads, rows * (thread + 1) // threads
        sums[thread, :columns] = 0
        add_rows(x[start:end], matrix[start:end], sums[thread, :columns])
    for thread in range(threads):
        for j in range(columns):
            y[j] += sums[thread, j]


@jit
def add_product(x, matrix, y, sums):
    """y += x @ matrix."""
    if len(sums) > 1 and matrix.size >= SPLIT_FROM:
        add_rows_in_threads(x, matrix, y, sums)
    else:
        add_rows(x, matrix, y)


@jit
def normalise(x, weight, eps, out):
    """RMSNorm."""
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i] * x[i]
    scale = ONE / np.sqrt(total / np.float32(len(x)) + eps)
    for i in range(len(x)):
        out[i] = x[i] * scale * weight[i]


@jit
def rotate(x_hd, cos, sin):
    """Rotate heads (heads, D) in place."""
    half = x_hd.shape[1] // 2
    for h in range(len(x_hd)):
        for i in range(half):
            a, b = x_hd[h, i], x_hd[h, i + half]
            x_hd[h, i] = a * cos[i] - b * sin[i]
            x_hd[h, i + half] = b * cos[i] + a * sin[i]


@jit
def attend(q_d, k_sd, v_sd, sink, scores, out):
    """Attention of one head."""
    count = len(k_sd)
    top = sink
    for s in range(count):
        score = np.float32(0)
        for i in range(len(q_d)):
            score += q_d[i] * k_sd[s, i]
        scores[s] = score
        top = max(top, score)
    total = exp(sink - top)
    for s in range(count):
        scores[s] = exp(scores[s] - top)
        total += scores[s]
    out[:] = 0
    add_rows(scores[:count], v_sd, out)
    for i in range(len(out)):
        out[i] /= total


@jit
def route(logits, chosen, weights):
    """The K highest of the logits, and the softmax over those."""
    total = np.float32(0)
    for k in range(len(chosen)):
        best = -1
        for e in range(len(logits)):
            if e not in chosen[:k] and (best < 0 or logits[e] > logits[best]):
                best = e
        chosen[k] = best
        weights[k] = exp(logits[best] - logits[chosen[0]])
        total += weights[k]
    weights /= total


@jit
def swiglu(gate_up, hidden):
    """The clamped SwiGLU of 2 F numbers into F."""
    half = len(hidden)
    for i in range(half):
        gate = min(gate_up[i], LIMIT)
        up = max(min(gate_up[half + i], LIMIT), -LIMIT)
        hidden[i] = (up + ONE) * gate / (ONE + exp(-ALPHA * gate))


@numba.njit(cache=True, **OPTIONS)
def add_layer(
    x, position, window, eps, experts_per_token, sums, keys_gsd, values_gsd, cos, sin,
    attention_norm, qkv_matrix, qkv_bias, sinks, out_matrix, out_bias,
    expert_norm, router, router_bias, gate_up_matrix, gate_up_bias, down, down_bias,
):  # fmt: skip
    """Add the attention and the experts of a layer to the stream x (C); keys and values go to the cache."""
    G, M = sinks.shape
    D, H, F = keys_gsd.shape[2], G * M, down.shape[1]
    normed, mixed = np.empty_like(x), np.empty((H, D), np.float32)
    qkv = qkv_bias.copy()
    normalise(x, attention_norm, eps, normed)
    add_product(normed, qkv_matrix, qkv.reshape(-1), sums)
    rotate(qkv[: H + G], cos[position], sin[position])
    start, end = max(0, position + 1 - window), position + 1
    scores = np.empty(end - start, np.float32)
    for g in range(G):
        keys_gsd[g, position] = qkv[H + g]
        values_gsd[g, position] = qkv[H + G + g]
        for m in range(M):
            h = g * M + m
            attend(qkv[h], keys_gsd[g, start:end], values_gsd[g, start:end], sinks[g, m], scores, mixed[h])
    x += out_bias
    add_product(mixed.reshape(-1), out_matrix, x, sums)

    normalise(x, expert_norm, eps, normed)
    router_logits, weights = router_bias.copy(), np.empty(experts_per_token, np.float32)
    chosen, hidden = np.empty(experts_per_token, np.int64), np.empty(F, np.float32)
    add_rows(normed, router, router_logits)
    route(router_logits, chosen, weights)
    for k in range(experts_per_token):
        gate_up, part = gate_up_bias[chosen[k]].copy(), down_bias[chosen[k]].copy()
        add_product(normed, gate_up_matrix[chosen[k]], gate_up, sums)
        swiglu(gate_up, hidden)
        add_product(hidden, down[chosen[k]], part, sums)
        for i in range(len(x)):
            x[i] += weights[k] * part[i]


@numba.njit(cache=True, **OPTIONS)
def last_layer(x, norm, eps, lm_head, logits, sums):
    """The logits (V,) of the stream x (C)."""
    normed = np.empty_like(x)
    normalise(x, norm, eps, normed)
    logits[:] = 0
    add_product(normed, lm_head, logits, sums)


class CompiledRow(SingleRow):
    """A `SingleRow` whose layers are compiled when it is made, or loaded from the disk."""

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        super().__init__(model, cache)
        torch_threads = torch.get_num_threads()
        threads = min(MAX_THREADS, torch_threads, numba.get_num_threads())
        self.logits = np.empty(model.config.vocab_size, np.float32)
        matrices = (m for layer in self.layers for m in (layer.qkv, layer.out, layer.gate_up, self.lm_head))
        widest = max(matrix.shape[-1] for matrix in matrices)
        self.sums = np.empty((threads, widest), np.float32)
        half = model.config.head_dim // 2
        self.tables = np.ascontiguousarray(self.cos[:, :half]), np.ascontiguousarray(self.sin[:, 1])
        self.eps = np.float32(model.config.norm_eps)
        self.weights = [layer.arrays() for layer in self.layers]
        self.x.fill(0)
        self._add_layer(0)
        self._read_logits()
        torch.set_num_threads(torch_threads)  # numba, as it starts, sets the number for all that use OpenMP
        if threads > 1 and numba.threading_layer() == "workqueue":  # its threads wake too slowly to gain anything
            self.sums = self.sums[:1]

    def _add_layer(self, number: int) -> None:
        add_layer(
            self.x,
            self.cache.length,
            self.windows[number],
            self.eps,
            self.config.experts_per_token,
            self.sums,
            self.keys[number],
            self.values[number],
            *self.tables,
            *self.weights[number],
        )

    def _read_logits(self) -> Array:
        # no product of NumPy's here: the threads of its BLAS go on spinning for a while, in the way of numba's
        last_layer(self.x, self.norm, self.eps, self.lm_head, self.logits, self.sums)
        return self.logits
