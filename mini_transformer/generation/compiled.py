"""The step of one token for each row of a batch, compiled by numba: one call for each layer, for all rows.

Each weight is read once for all rows, and each sum of a row has its order whatever the other rows are, so that a row's
logits are the same, bit for bit, in any batch. Axes as in `single_row`, and N rows, S positions.
"""

import math

import numba
import numpy as np
import torch

from mini_transformer.generation.single_row import Array, LayerWeights, array, transposed
from mini_transformer.model.attention import KVCache
from mini_transformer.model.decoder import Block, Decoder
from mini_transformer.model.moe import SWIGLU_ALPHA, SWIGLU_LIMIT

LOG2_E, LN_2 = np.float32(math.log2(math.e)), np.float32(math.log(2))
C2, C3, C4, C5, C6, C7 = (np.float32(1 / math.factorial(i)) for i in range(2, 8))  # of the series of e^x
ALPHA, LIMIT, ONE = np.float32(SWIGLU_ALPHA), np.float32(SWIGLU_LIMIT), np.float32(1)
SPLIT_FROM = 1 << 18  # products of numbers that are worth waking the other threads
MAX_THREADS = 8  # more have not been tried
# sums may be reordered, as they must be for vectors; infinities and NaN stay what they are
OPTIONS = {"error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
jit = numba.njit(**OPTIONS)
in_order = numba.njit(error_model="numpy", fastmath={"contract"})  # sums as they are written


@jit
def exp(x):
    """e^x to rounding, x cut at ±87: of operations that the compiler turns into vectors, as it cannot a library's."""
    x = min(max(x, np.float32(-87)), np.float32(87))
    n = np.floor(x * LOG2_E + np.float32(0.5))
    r = x - n * LN_2  # within ±ln(2) / 2
    power = ONE + r * (ONE + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * (C6 + r * C7))))))
    return power * np.int32((np.int32(n) + 127) << 23).view(np.float32)  # times 2^n, by its bits


@in_order
def add_eight(x, matrix, y):
    """y (columns) += x (8) @ matrix (8, columns)."""
    a, b, c, d, e, f, g, h = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
    for j in range(len(y)):
        first = y[j] + a * matrix[0, j] + b * matrix[1, j] + c * matrix[2, j] + d * matrix[3, j]
        y[j] = first + e * matrix[4, j] + f * matrix[5, j] + g * matrix[6, j] + h * matrix[7, j]


@in_order
def add_four_by_four(x, i, matrix, y):
    """y (4, columns) += x (4, rows), of which four from i on, @ matrix (4, columns): a number is read once for four."""
    a, b, c, d = x[0, i : i + 4], x[1, i : i + 4], x[2, i : i + 4], x[3, i : i + 4]
    a0, a1, a2, a3, b0, b1, b2, b3 = a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]
    c0, c1, c2, c3, d0, d1, d2, d3 = c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]
    for j in range(y.shape[1]):
        m0, m1, m2, m3 = matrix[0, j], matrix[1, j], matrix[2, j], matrix[3, j]
        y[0, j] = y[0, j] + a0 * m0 + a1 * m1 + a2 * m2 + a3 * m3
        y[1, j] = y[1, j] + b0 * m0 + b1 * m1 + b2 * m2 + b3 * m3
        y[2, j] = y[2, j] + c0 * m0 + c1 * m1 + c2 * m2 + c3 * m3
        y[3, j] = y[3, j] + d0 * m0 + d1 * m1 + d2 * m2 + d3 * m3


@jit
def add_rows(x, matrix, y, start, end):
    """y (N, columns) += x (N, rows) @ matrix (rows, columns), of the rows from `start` to `end` of the matrix."""
    fours = len(x) - len(x) % 4
    for i in range(start, end - 7, 8):
        for n in range(0, fours, 4):
            add_four_by_four(x[n : n + 4], i, matrix[i : i + 4], y[n : n + 4])
            add_four_by_four(x[n : n + 4], i + 4, matrix[i + 4 : i + 8], y[n : n + 4])
        for n in range(fours, len(x)):
            add_eight(x[n, i : i + 8], matrix[i : i + 8], y[n])
    for i in range(end - (end - start) % 8, end):
        for n in range(len(x)):
            y_n, m, a = y[n], matrix[i], x[n, i]
            for j in range(len(y_n)):
                y_n[j] += a * m[j]


@numba.njit(parallel=True, **OPTIONS)
def add_parts_in_threads(x, matrix, y, threads):
    """The same, of all rows of the matrix: each thread with its part of them and a sum of its own."""
    rows, columns = matrix.shape
    sums = np.zeros((threads, len(x), columns), np.float32)
    for thread in numba.prange(threads):
        add_rows(x, matrix, sums[thread], rows * thread // threads, rows * (thread + 1) // threads)
    for thread in range(threads):
        y += sums[thread]


@numba.njit(parallel=True, **OPTIONS)
def add_rows_in_threads(x, matrix, y, threads):
    """The same: each thread with its rows of x and y."""
    N = len(x)
    for thread in numba.prange(threads):
        start, end = N * thread // threads, N * (thread + 1) // threads
        add_rows(x[start:end], matrix, y[start:end], 0, len(matrix))


@jit
def add_product(x, matrix, y, threads):
    """y (N, columns) += x (N, rows) @ matrix. What decides the order of a sum is the matrix, never N."""
    if threads > 1 and matrix.size >= SPLIT_FROM:
        add_parts_in_threads(x, matrix, y, threads)
    elif threads > 1 and len(x) > 1 and matrix.size * len(x) >= SPLIT_FROM:
        add_rows_in_threads(x, matrix, y, threads)
    else:
        add_rows(x, matrix, y, 0, len(matrix))


@jit
def product(x, matrix, bias, threads):
    """x (N, rows) @ matrix + bias, (N, columns)."""
    y = np.empty((len(x), matrix.shape[1]), np.float32)
    y[:] = bias
    add_product(x, matrix, y, threads)
    return y


@jit
def normalise(x, weight, eps):
    """RMSNorm of each row (N, C)."""
    out = np.empty_like(x)
    for n in range(len(x)):
        total = np.float32(0)
        for i in range(x.shape[1]):
            total += x[n, i] * x[n, i]
        scale = ONE / np.sqrt(total / np.float32(x.shape[1]) + eps)
        for i in range(x.shape[1]):
            out[n, i] = x[n, i] * scale * weight[i]
    return out


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
def attend(q_d, k_sd, v_sd, sink, out):
    """Attention of one head of one row."""
    count = len(k_sd)
    scores = np.empty((1, count), np.float32)
    top = sink
    for s in range(count):
        score = np.float32(0)
        for i in range(len(q_d)):
            score += q_d[i] * k_sd[s, i]
        scores[0, s] = score
        top = max(top, score)
    total = exp(sink - top)
    for s in range(count):
        scores[0, s] = exp(scores[0, s] - top)
        total += scores[0, s]
    out[:] = 0
    add_rows(scores, v_sd, out.reshape((1, len(out))), 0, count)
    for i in range(len(out)):
        out[i] /= total


@jit
def route(logits, chosen, weights):
    """The K highest of the logits of one row, and the softmax over those."""
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
def swiglu(gate_up):
    """The clamped SwiGLU of (N, 2 F) into (N, F)."""
    N, half = len(gate_up), gate_up.shape[1] // 2
    hidden = np.empty((N, half), np.float32)
    for n in range(N):
        for i in range(half):
            gate = min(gate_up[n, i], LIMIT)
            up = max(min(gate_up[n, half + i], LIMIT), -LIMIT)
            hidden[n, i] = (up + ONE) * gate / (ONE + exp(-ALPHA * gate))
    return hidden


@numba.njit(cache=True, **OPTIONS)
def add_layer(
    x, positions, window, eps, experts_per_token, threads, keys_ngsd, values_ngsd, cos, sin,
    attention_norm, qkv_matrix, qkv_bias, sinks, out_matrix, out_bias,
    expert_norm, router, router_bias, gate_up_matrix, gate_up_bias, down, down_bias,
):  # fmt: skip
    """Add the attention and the experts of a layer to the stream x (N, C); keys and values go to the cache."""
    N, (G, M), D = len(x), sinks.shape, keys_ngsd.shape[3]
    H = G * M
    qkv = product(normalise(x, attention_norm, eps), qkv_matrix, qkv_bias.reshape(-1), threads).reshape((N, -1, D))
    mixed = np.empty((N, H, D), np.float32)
    for n in range(N):
        position = positions[n]
        start, end = max(0, position + 1 - window), position + 1
        rotate(qkv[n, : H + G], cos[position], sin[position])
        for g in range(G):
            keys_ngsd[n, g, position] = qkv[n, H + g]
            values_ngsd[n, g, position] = qkv[n, H + G + g]
            keys, values = keys_ngsd[n, g, start:end], values_ngsd[n, g, start:end]
            for h in range(g * M, g * M + M):
                attend(qkv[n, h], keys, values, sinks[g, h - g * M], mixed[n, h])
    x += product(mixed.reshape((N, H * D)), out_matrix, out_bias, threads)

    normed = normalise(x, expert_norm, eps)
    logits = product(normed, router, router_bias, 1)
    chosen, weights = np.empty((N, experts_per_token), np.int64), np.empty((N, experts_per_token), np.float32)
    for n in range(N):
        route(logits[n], chosen[n], weights[n])
    for expert in range(len(down)):
        rows, slots = np.nonzero(chosen == expert)  # the rows that chose it, and where its weight is
        if len(rows):
            gate_up = product(normed[rows], gate_up_matrix[expert], gate_up_bias[expert], threads)
            part = product(swiglu(gate_up), down[expert], down_bias[expert], threads)
            for i in range(len(rows)):
                weight = weights[rows[i], slots[i]]
                for j in range(x.shape[1]):
                    x[rows[i], j] += weight * part[i, j]


@numba.njit(cache=True, **OPTIONS)
def last_layer(x, norm, eps, lm_head, threads):
    """The logits (N, V) of the stream x (N, C)."""
    logits = np.zeros((len(x), lm_head.shape[1]), np.float32)
    add_product(normalise(x, norm, eps), lm_head, logits, threads)
    return logits


class CompiledRows:
    """Takes the step of a model that `single_row.fits`, with one token for each row of a cache that both share.

    It is compiled when it is made, or loaded from the disk. The weights are those that the model has then.
    """

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        self.config, self.cache = model.config, cache
        self.embed, self.lm_head = array(model.embed_tokens.weight), transposed(array(model.lm_head.weight))
        self.norm, self.eps = array(model.norm.weight), np.float32(model.config.norm_eps)
        self.weights = [LayerWeights.of(block).arrays() for block in model.layers if isinstance(block, Block)]
        self.tables = array(model.get_buffer("cos")), array(model.get_buffer("sin"))
        torch_threads = torch.get_num_threads()
        self.threads = min(MAX_THREADS, torch_threads, numba.get_num_threads())
        self.step([0] * len(cache.lengths))
        cache.lengths = [0] * len(cache.lengths)
        torch.set_num_threads(torch_threads)  # numba, as it starts, sets the number for all that use OpenMP
        if self.threads > 1 and numba.threading_layer() == "workqueue":  # its threads wake too slowly to gain anything
            self.threads = 1

    def step(self, tokens: list[int]) -> Array:
        """The logits (N, V) after one more token of each row, which are added to the cache."""
        cache, x, positions = self.cache, self.embed[tokens], np.array(self.cache.lengths)
        keys, values = array(cache.keys), array(cache.values)
        for layer, weights in enumerate(self.weights):
            numbers = (self.config.window(layer), self.eps, self.config.experts_per_token, self.threads)
            add_layer(x, positions, *numbers, keys[layer], values[layer], *self.tables, *weights)
        cache.lengths = [length + 1 for length in cache.lengths]
        # no product of NumPy's here: the threads of its BLAS go on spinning for a while, in the way of numba's
        return last_layer(x, self.norm, self.eps, self.lm_head, self.threads)
