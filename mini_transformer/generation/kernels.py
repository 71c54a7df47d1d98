"""What numba compiles of the step of one token for each row of a batch; see `compiled`.

Each sum of a row has its order whatever the other rows are. Matrices are float32 or, as uint16, bfloat16. Axes as in
`single_row`, and N rows, S positions. All of it is in this file, by which numba decides whether its cache is current.
"""

import math

import numba.extending
import numpy as np

from mini_transformer.model.swiglu import SWIGLU_ALPHA, SWIGLU_LIMIT

LOG2_E, LN_2 = np.float32(math.log2(math.e)), np.float32(math.log(2))
C2, C3, C4, C5, C6, C7 = (np.float32(1 / math.factorial(i)) for i in range(2, 8))  # of the series of e^x
ALPHA, LIMIT, ONE = np.float32(SWIGLU_ALPHA), np.float32(SWIGLU_LIMIT), np.float32(1)
SPLIT_FROM = 1 << 18  # products of numbers that are worth waking the other threads
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


def widen(x):
    """The float32 of a weight, which is one, or the upper half of its bits; see below."""


@numba.extending.overload(widen)
def _widen(x):
    if isinstance(x, numba.types.Float):
        return lambda x: x
    return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)


@in_order
def add_eight(x, n, i, m, y):
    """Row n of y += eight numbers of row n of x, from i on, @ as many rows of m; slices would cost more than that."""
    a, b, c, d = x[n, i], x[n, i + 1], x[n, i + 2], x[n, i + 3]
    e, f, g, h = x[n, i + 4], x[n, i + 5], x[n, i + 6], x[n, i + 7]
    for j in range(y.shape[1]):
        m0, m1, m2, m3 = widen(m[i, j]), widen(m[i + 1, j]), widen(m[i + 2, j]), widen(m[i + 3, j])
        m4, m5, m6, m7 = widen(m[i + 4, j]), widen(m[i + 5, j]), widen(m[i + 6, j]), widen(m[i + 7, j])
        first = y[n, j] + a * m0 + b * m1 + c * m2 + d * m3
        y[n, j] = first + e * m4 + f * m5 + g * m6 + h * m7


@in_order
def add_four_by_four(x, n, i, m, y):
    """Four rows of y, from n on, += four numbers of each of these rows of x, from i on, @ as many rows of m.

    Each number of m is read once for four rows.
    """
    a0, a1, a2, a3 = x[n, i], x[n, i + 1], x[n, i + 2], x[n, i + 3]
    b0, b1, b2, b3 = x[n + 1, i], x[n + 1, i + 1], x[n + 1, i + 2], x[n + 1, i + 3]
    c0, c1, c2, c3 = x[n + 2, i], x[n + 2, i + 1], x[n + 2, i + 2], x[n + 2, i + 3]
    d0, d1, d2, d3 = x[n + 3, i], x[n + 3, i + 1], x[n + 3, i + 2], x[n + 3, i + 3]
    for j in range(y.shape[1]):
        m0, m1, m2, m3 = widen(m[i, j]), widen(m[i + 1, j]), widen(m[i + 2, j]), widen(m[i + 3, j])
        y[n, j] = y[n, j] + a0 * m0 + a1 * m1 + a2 * m2 + a3 * m3
        y[n + 1, j] = y[n + 1, j] + b0 * m0 + b1 * m1 + b2 * m2 + b3 * m3
        y[n + 2, j] = y[n + 2, j] + c0 * m0 + c1 * m1 + c2 * m2 + c3 * m3
        y[n + 3, j] = y[n + 3, j] + d0 * m0 + d1 * m1 + d2 * m2 + d3 * m3


@jit
def add_rows(x, matrix, y, start, end):
    """y (N, columns) += x (N, rows) @ matrix (rows, columns), of the rows from `start` to `end` of the matrix."""
    fours = len(x) - len(x) % 4
    for i in range(start, end - 7, 8):
        for n in range(0, fours, 4):
            add_four_by_four(x, n, i, matrix, y)
            add_four_by_four(x, n, i + 4, matrix, y)
        for n in range(fours, len(x)):
            add_eight(x, n, i, matrix, y)
    for i in range(end - (end - start) % 8, end):
        for n in range(len(x)):
            for j in range(y.shape[1]):
                y[n, j] += x[n, i] * widen(matrix[i, j])


@jit
def add_parts(x, matrix, y, parts):
    """The same, of all rows of the matrix, with a sum of its own for each part of them."""
    rows = len(matrix)
    for part in range(parts):
        total = np.zeros_like(y)
        add_rows(x, matrix, total, rows * part // parts, rows * (part + 1) // parts)
        y += total


@numba.njit(parallel=True, **OPTIONS)
def add_parts_in_threads(x, matrix, y, threads):
    """The same, bit for bit, each part by a thread."""
    rows, columns = matrix.shape
    sums = np.zeros((threads, len(x), columns), np.float32)
    for thread in numba.prange(threads):
        add_rows(x, matrix, sums[thread], rows * thread // threads, rows * (thread + 1) // threads)
    for thread in range(threads):
        y += sums[thread]


@jit
def add_product(x, matrix, y, threads, alone):
    """y (N, columns) += x (N, rows) @ matrix. What decides the order of a sum is the matrix, never N.

    `alone`: all threads are free for it; otherwise this is one of them.
    """
    if threads == 1 or matrix.size < SPLIT_FROM:
        add_rows(x, matrix, y, 0, len(matrix))
    elif alone:
        add_parts_in_threads(x, matrix, y, threads)
    else:
        add_parts(x, matrix, y, threads)


@jit
def product(x, matrix, bias, threads, alone):
    """x (N, rows) @ matrix + bias, (N, columns)."""
    y = np.empty((len(x), matrix.shape[1]), np.float32)
    y[:] = bias
    add_product(x, matrix, y, threads, alone)
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
def rotate(x_hd, cos, sin, scale):
    """Rotate and scale heads (heads, D) in place."""
    half = x_hd.shape[1] // 2
    for h in range(len(x_hd)):
        for i in range(half):
            a, b = x_hd[h, i] * scale, x_hd[h, i + half] * scale
            x_hd[h, i] = a * cos[i] - b * sin[i]
            x_hd[h, i + half] = b * cos[i] + a * sin[i]


@jit
def scores_of(q_d, k_sd, scores_s):
    """The products of a query with all keys, four keys at a time."""
    fours = len(k_sd) - len(k_sd) % 4
    for s in range(0, fours, 4):
        a = b = c = d = np.float32(0)
        for i in range(len(q_d)):
            q = q_d[i]
            a += q * k_sd[s, i]
            b += q * k_sd[s + 1, i]
            c += q * k_sd[s + 2, i]
            d += q * k_sd[s + 3, i]
        scores_s[s], scores_s[s + 1], scores_s[s + 2], scores_s[s + 3] = a, b, c, d
    for s in range(fours, len(k_sd)):
        scores_s[s] = 0
        for i in range(len(q_d)):
            scores_s[s] += q_d[i] * k_sd[s, i]


@jit
def add_weighted(p_s, v_sd, out):
    """out (D) += p (S) @ v (S, D), eight rows at a time."""
    eights = len(p_s) - len(p_s) % 8
    for s in range(0, eights, 8):
        a, b, c, d = p_s[s], p_s[s + 1], p_s[s + 2], p_s[s + 3]
        e, f, g, h = p_s[s + 4], p_s[s + 5], p_s[s + 6], p_s[s + 7]
        for i in range(len(out)):
            first = a * v_sd[s, i] + b * v_sd[s + 1, i] + c * v_sd[s + 2, i] + d * v_sd[s + 3, i]
            last = e * v_sd[s + 4, i] + f * v_sd[s + 5, i] + g * v_sd[s + 6, i] + h * v_sd[s + 7, i]
            out[i] += first + last
    for s in range(eights, len(p_s)):
        for i in range(len(out)):
            out[i] += p_s[s] * v_sd[s, i]


@jit
def attend(q_d, k_sd, v_sd, sink, out):
    """Attention of one head of one row."""
    p_s = np.empty(len(k_sd), np.float32)
    scores_of(q_d, k_sd, p_s)
    top = sink
    for s in range(len(p_s)):
        top = max(top, p_s[s])
    total = exp(sink - top)
    for s in range(len(p_s)):
        p_s[s] = exp(p_s[s] - top)
        total += p_s[s]
    out[:] = 0
    add_weighted(p_s, v_sd, out)
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


@jit
def add_to_rows(x, positions, numbers, keys_ngsd, values_ngsd, tables, weights, alone):
    """`add_layer` for some of the rows, by one thread, or by all if `alone`."""
    window, eps, experts_per_token, threads = numbers
    cos, sin = tables
    attention_norm, qkv_matrix, qkv_bias, sinks, out_matrix, out_bias = weights[:6]
    expert_norm, router, router_bias, gate_up_matrix, gate_up_bias, down, down_bias = weights[6:]
    N, (G, M), D = len(x), sinks.shape, keys_ngsd.shape[3]
    H = G * M
    normed = normalise(x, attention_norm, eps)
    qkv = product(normed, qkv_matrix, qkv_bias.reshape(-1), threads, alone).reshape((N, -1, D))
    mixed = np.empty((N, H, D), np.float32)
    for n in range(N):
        position = positions[n]
        start, end = max(0, position + 1 - window), position + 1
        rotate(qkv[n, :H], cos[position], sin[position], ONE / np.sqrt(np.float32(D)))
        rotate(qkv[n, H : H + G], cos[position], sin[position], ONE)
        for g in range(G):
            keys_ngsd[n, g, position] = qkv[n, H + g]
            values_ngsd[n, g, position] = qkv[n, H + G + g]
            keys, values = keys_ngsd[n, g, start:end], values_ngsd[n, g, start:end]
            for h in range(g * M, g * M + M):
                attend(qkv[n, h], keys, values, sinks[g, h - g * M], mixed[n, h])
    x += product(mixed.reshape((N, H * D)), out_matrix, out_bias, threads, alone)
    normed = normalise(x, expert_norm, eps)
    logits = product(normed, router, router_bias, 1, alone)
    chosen, shares = np.empty((N, experts_per_token), np.int64), np.empty((N, experts_per_token), np.float32)
    for n in range(N):
        route(logits[n], chosen[n], shares[n])
    for expert in range(len(down)):
        rows, slots = np.nonzero(chosen == expert)  # the rows that chose it, and where its share is
        if len(rows):
            gate_up = product(normed[rows], gate_up_matrix[expert], gate_up_bias[expert], threads, alone)
            part = product(swiglu(gate_up), down[expert], down_bias[expert], threads, alone)
            for i in range(len(rows)):
                for j in range(x.shape[1]):
                    x[rows[i], j] += shares[rows[i], slots[i]] * part[i, j]


@numba.njit(parallel=True, cache=True, **OPTIONS)
def add_layer(x, positions, numbers, keys_ngsd, values_ngsd, tables, weights):
    """Add the attention and the experts of a layer to the stream x (N, C); keys and values go to the cache.

    Each thread takes some of the rows; one row alone is for all threads.
    """
    N, threads = len(x), numbers[3]
    if N == 1 or threads == 1:
        add_to_rows(x, positions, numbers, keys_ngsd, values_ngsd, tables, weights, True)
    else:
        for thread in numba.prange(threads):
            part = slice(N * thread // threads, N * (thread + 1) // threads)
            add_to_rows(x[part], positions[part], numbers, keys_ngsd[part], values_ngsd[part], tables, weights, False)


@numba.njit(cache=True, **OPTIONS)
def last_layer(x, norm, eps, lm_head, threads):
    """The logits (N, V) of the stream x (N, C)."""
    logits = np.zeros((len(x), lm_head.shape[1]), np.float32)
    add_product(normalise(x, norm, eps), lm_head, logits, threads, True)
    return logits
