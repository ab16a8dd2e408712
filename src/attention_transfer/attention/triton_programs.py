"""The Triton programs of `triton_kernels.py`: two attentions and their distance in one pass, and its gradients.

Forward, a program has a tile of query rows and walks along the keys with two online softmaxes at once. Beside each
side's running maximum m and sum l it keeps `Σ_j p_t (x_s - m_s)`, the teacher's weights on the student's logits, from
which `CE_i = log l_s - Σ_j P_t (x_s - m_s)`. The same sum of the teacher's own logits is its entropy, and with values
`Σ_j p_s v_j` is the student's attention.

Backward, the tiles are computed again. Of the loss comes `dS = g_i (P_s - P_t)`, of the attention
`dS = P_s ∘ (dP - δ)`; they are added before the products that give the gradients of q and k. One kernel walks along
the keys (dQ), one along the query rows (dK, dV).

Logits are kept in units of log 2, as the hardware's exponential wants them. A masked key has the finite logit _MASKED,
so that no inf - inf occurs; a row without any other key is dead: its loss, its attention and its gradients are 0.

Shapes: B batch, H heads, N query tokens, M key tokens, D head dimension. In the kernels i are the rows and j the keys
of a tile; WIDE is the power of two that holds D; a stride is named by its tensor and b, h, n or m.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import math
from typing import Any

try:
    import triton
    import triton.language as tl
    from triton import knobs
except ImportError:  # the library works without; available() says so
    triton = tl = None

_jit: Any = triton.jit if triton else lambda function: function
_constant: Any = tl.constexpr if triton else lambda value: value
INSTALLED = triton is not None
INTERPRETS = bool(triton) and knobs.runtime.interpret  # Triton's interpreter on the CPU, for tests

_MASKED = _constant(-3e38)  # the logit of a key that doesn't take part
_HIDDEN = _constant(-2e38)  # any lower logit is _MASKED
_FLOOR = _constant(-1e30)  # the least logit of a key that does take part: a row may be full of a mask's -3.4e38
_LOG2_E = _constant(math.log2(math.e))
_LN_2 = _constant(math.log(2))
_BOOST = _constant(12.0)  # P_s - P_t is rounded to 16 bits times 2^12: in float16 weights under 2^-14 lose digits
_UNBOOST = _constant(2.0**-12)
_WIDENS = _constant(INTERPRETS)  # the interpreter can't multiply bfloat16


@_jit
def _here(x, head, H, x_b, x_h):
    """Where one head of a tensor (B, H, …) begins."""
    return x + (head // H).to(tl.int64) * x_b + (head % H).to(tl.int64) * x_h


@_jit
def _load(x, i, x_n, N, D: tl.constexpr, WIDE: tl.constexpr):
    """Rows i of a matrix (N, D) as a tile (i, WIDE), 0 beyond its edges."""
    d = tl.arange(0, WIDE)
    inside = (i < N)[:, None]
    if D < WIDE:
        inside = inside & (d < D)[None, :]
    return tl.load(x + i.to(tl.int64)[:, None] * x_n + d[None, :], mask=inside, other=0.0)


@_jit
def _store(x, value, i, x_n, N, D: tl.constexpr, WIDE: tl.constexpr):
    """The reverse of `_load`."""
    d = tl.arange(0, WIDE)
    inside = (i < N)[:, None] & (d < D)[None, :]
    tl.store(x + i.to(tl.int64)[:, None] * x_n + d[None, :], value.to(x.dtype.element_ty), mask=inside)


@_jit
def _dot(a, b, total=None):
    """`total + a b` in float32; float32 operands are not shortened to TF32."""
    if _WIDENS:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@_jit
def _logits(a, b, scale, mask, i, j, mask_i, mask_j, I, J):
    """Logits of a tile (i, j) in units of log 2, but for `_factor`; the mask's strides are mask_i and mask_j."""
    x = _dot(a, tl.trans(b))
    if mask is not None:
        inside = (i < I)[:, None] & (j < J)[None, :]
        here = mask + i.to(tl.int64)[:, None] * mask_i + j.to(tl.int64)[None, :] * mask_j
        bias = tl.load(here, mask=inside, other=0)
        x = x * (scale * _LOG2_E)
        if mask.dtype.element_ty.is_int():
            x = tl.where(bias, x, _MASKED)
        else:
            bias = bias.to(tl.float32)
            x = tl.where(bias == float("-inf"), _MASKED, tl.maximum(x + bias * _LOG2_E, _FLOOR))
    return x


@_jit
def _factor(scale, mask):
    """What the tiles of `_logits` are still to be multiplied by: without a mask that is one step with a subtraction."""
    if mask is None:
        return scale * _LOG2_E
    return 1.0


@_jit
def _save(stats, m, log_l, mask, row, plane, inside):
    """Keep a row's maximum and the logarithm of its sum; their sum alone where no mask can make a row dead."""
    if mask is None:
        tl.store(stats + row, m + log_l, mask=inside)
    else:
        tl.store(stats + row, m, mask=inside)
        tl.store(stats + plane + row, log_l, mask=inside)


@_jit
def _saved(stats, mask, row, plane, inside, boost: tl.constexpr):
    """What `_save` kept, as the two numbers of `_weights`; 0 beyond the rows, of which the gradient is 0 as well."""
    m = tl.load(stats + row, mask=inside, other=0.0)
    if mask is None:
        return m - boost, m
    return m, tl.load(stats + plane + row, mask=inside, other=0.0) - boost


@_jit
def _gated(g, log_l, mask):
    """The gradient of a loss's rows, 0 for dead ones."""
    if mask is None:
        return g
    return tl.where(log_l < float("inf"), g, 0.0)


@_jit
def _weights(x, factor, m, log_l, mask):
    """Softmax weights of a tile from what `_saved` gave."""
    if mask is None:
        return tl.exp2(x * factor - m)
    return tl.exp2((x - m) - log_l)  # in their sum the logarithm of a row at the floor would drown


@_jit
def _forward_kernel(  # noqa: PLR0915
    q_s, q_s_b, q_s_h, q_s_n, k_s, k_s_b, k_s_h, k_s_m, v_s, v_s_b, v_s_h, v_s_m,
    q_t, q_t_b, q_t_h, q_t_n, k_t, k_t_b, k_t_h, k_t_m,
    mask_s, mask_s_b, mask_s_h, mask_s_n, mask_s_m, mask_t, mask_t_b, mask_t_h, mask_t_n, mask_t_m,
    stats, scale_s, scale_t, H, N, M, out, out_b, out_h, out_n, ce, own,
    D_S: tl.constexpr, D_T: tl.constexpr, D_V: tl.constexpr,
    WIDE_S: tl.constexpr, WIDE_T: tl.constexpr, WIDE_V: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(N, BLOCK_N)
    head = tl.program_id(0) // tiles
    i = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    k_s = _here(k_s, head, H, k_s_b, k_s_h)
    k_t = _here(k_t, head, H, k_t_b, k_t_h)
    if v_s is not None:
        v_s = _here(v_s, head, H, v_s_b, v_s_h)
    if mask_s is not None:
        mask_s = _here(mask_s, head, H, mask_s_b, mask_s_h)
    if mask_t is not None:
        mask_t = _here(mask_t, head, H, mask_t_b, mask_t_h)
    a_s = _load(_here(q_s, head, H, q_s_b, q_s_h), i, q_s_n, N, D_S, WIDE_S)
    a_t = _load(_here(q_t, head, H, q_t_b, q_t_h), i, q_t_n, N, D_T, WIDE_T)

    m_s = tl.full([BLOCK_N], _FLOOR, tl.float32)
    m_t = tl.full([BLOCK_N], _FLOOR, tl.float32)
    l_s = tl.zeros([BLOCK_N], tl.float32)
    l_t = tl.zeros([BLOCK_N], tl.float32)
    across = tl.zeros([BLOCK_N], tl.float32)  # Σ p_t (x_s - m_s)
    along = tl.zeros([BLOCK_N], tl.float32)  # Σ p_t (x_t - m_t)
    lost = tl.zeros([BLOCK_N], tl.float32)  # Σ p_t of the keys that the student masks
    mixed = tl.zeros([BLOCK_N, WIDE_V], tl.float32)  # Σ p_s v
    whole = M // BLOCK_M * BLOCK_M
    for edge in tl.static_range(2):  # the whole tiles, and one that the last keys fill in part
        for start in tl.range(edge * whole, M if edge else whole, BLOCK_M):
            j = start + tl.arange(0, BLOCK_M)
            b_s = _load(k_s, j, k_s_m, M, D_S, WIDE_S)
            b_t = _load(k_t, j, k_t_m, M, D_T, WIDE_T)
            x_s = _logits(a_s, b_s, scale_s, mask_s, i, j, mask_s_n, mask_s_m, N, M)
            x_t = _logits(a_t, b_t, scale_t, mask_t, i, j, mask_t_n, mask_t_m, N, M)
            f_s = _factor(scale_s, mask_s)
            f_t = _factor(scale_t, mask_t)
            if edge:
                x_s = tl.where((j < M)[None, :], x_s * f_s, _MASKED)
                x_t = tl.where((j < M)[None, :], x_t * f_t, _MASKED)
                f_s = 1.0
                f_t = 1.0
            new_s = tl.maximum(m_s, tl.max(x_s, 1) * f_s)
            new_t = tl.maximum(m_t, tl.max(x_t, 1) * f_t)
            y_s = x_s * f_s - new_s[:, None]
            y_t = x_t * f_t - new_t[:, None]
            p_s = tl.exp2(y_s)
            p_t = tl.exp2(y_t)
            fade_s = tl.exp2(m_s - new_s)
            fade_t = tl.exp2(m_t - new_t)
            l_t = l_t * fade_t
            if own is not None:
                along = along * fade_t - l_t * (new_t - m_t) + tl.sum(p_t * y_t, 1)
            if mask_s is not None:
                hidden = x_s < _HIDDEN
                lost = lost * fade_t + tl.sum(tl.where(hidden, p_t, 0.0), 1)
                y_s = tl.where(hidden, 0.0, y_s)
            across = across * fade_t - l_t * (new_s - m_s) + tl.sum(p_t * y_s, 1)
            l_t = l_t + tl.sum(p_t, 1)
            l_s = l_s * fade_s + tl.sum(p_s, 1)
            if v_s is not None:
                mixed = mixed * fade_s[:, None]
                values = _load(v_s, j, v_s_m, M, D_V, WIDE_V)
                mixed = _dot(p_s.to(values.dtype), values, mixed)
            m_s = new_s
            m_t = new_t

    row = head.to(tl.int64) * N + i
    inside = i < N
    alive = (l_s > 0) & (l_t > 0)
    log_s = tl.log2(l_s)
    log_t = tl.log2(l_t)
    distance = (log_s - across / l_t) * _LN_2
    if mask_s is not None:
        distance = tl.where(lost > 0, float("inf"), distance)
    tl.store(ce + row, tl.where(alive, distance, 0.0), mask=inside)
    if own is not None:
        tl.store(own + row, tl.where(alive, (log_t - along / l_t) * _LN_2, 0.0), mask=inside)
    if v_s is not None:
        mixed = tl.where((l_s > 0)[:, None], mixed / l_s[:, None], 0.0)
        _store(_here(out, head, H, out_b, out_h), mixed, i, out_n, N, D_V, WIDE_V)
    plane = (tl.num_programs(0) // tiles).to(tl.int64) * N
    _save(stats, m_s, tl.where(l_s > 0, log_s, float("inf")), mask_s, row, plane, inside)
    _save(stats + 2 * plane, m_t, tl.where(l_t > 0, log_t, float("inf")), mask_t, row, plane, inside)


@_jit
def _rows_kernel(
    q_s, q_s_b, q_s_h, q_s_n, k_s, k_s_b, k_s_h, k_s_m, v_s, v_s_b, v_s_h, v_s_m,
    q_t, q_t_b, q_t_h, q_t_n, k_t, k_t_b, k_t_h, k_t_m,
    mask_s, mask_s_b, mask_s_h, mask_s_n, mask_s_m, mask_t, mask_t_b, mask_t_h, mask_t_n, mask_t_m,
    stats, scale_s, scale_t, H, N, M, g, delta, unit, d_out, d_out_b, d_out_h, d_out_n,
    out, out_b, out_h, out_n, d_q, d_q_b, d_q_h, d_q_n,
    D_S: tl.constexpr, D_T: tl.constexpr, D_V: tl.constexpr,
    WIDE_S: tl.constexpr, WIDE_T: tl.constexpr, WIDE_V: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(N, BLOCK_N)
    head = tl.program_id(0) // tiles
    i = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    row = head.to(tl.int64) * N + i
    plane = (tl.num_programs(0) // tiles).to(tl.int64) * N
    boost: tl.constexpr = _BOOST if v_s is None else 0.0
    m_s, log_s = _saved(stats, mask_s, row, plane, i < N, boost)
    m_t, log_t = _saved(stats + 2 * plane, mask_t, row, plane, i < N, boost)
    g_i = tl.load(g + row, mask=i < N, other=0.0)
    g_i = _gated(_gated(g_i, log_s, mask_s), log_t, mask_t)
    shift = g_i
    if v_s is not None:
        d_o = _load(_here(d_out, head, H, d_out_b, d_out_h), i, d_out_n, N, D_V, WIDE_V)
        o = _load(_here(out, head, H, out_b, out_h), i, out_n, N, D_V, WIDE_V)
        shift = tl.sum(d_o.to(tl.float32) * o.to(tl.float32), 1) - g_i
        tl.store(delta + row, shift, mask=i < N)
        v_s = _here(v_s, head, H, v_s_b, v_s_h)
    if d_q is not None:
        k_s = _here(k_s, head, H, k_s_b, k_s_h)
        k_t = _here(k_t, head, H, k_t_b, k_t_h)
        if mask_s is not None:
            mask_s = _here(mask_s, head, H, mask_s_b, mask_s_h)
        if mask_t is not None:
            mask_t = _here(mask_t, head, H, mask_t_b, mask_t_h)
        a_s = _load(_here(q_s, head, H, q_s_b, q_s_h), i, q_s_n, N, D_S, WIDE_S)
        a_t = _load(_here(q_t, head, H, q_t_b, q_t_h), i, q_t_n, N, D_T, WIDE_T)
        total = tl.zeros([BLOCK_N, WIDE_S], tl.float32)
        for start in tl.range(0, M, BLOCK_M):
            j = start + tl.arange(0, BLOCK_M)
            b_s = _load(k_s, j, k_s_m, M, D_S, WIDE_S)
            b_t = _load(k_t, j, k_t_m, M, D_T, WIDE_T)
            x_s = _logits(a_s, b_s, scale_s, mask_s, i, j, mask_s_n, mask_s_m, N, M)
            x_t = _logits(a_t, b_t, scale_t, mask_t, i, j, mask_t_n, mask_t_m, N, M)
            p_s = _weights(x_s, _factor(scale_s, mask_s), m_s[:, None], log_s[:, None], mask_s)
            p_t = _weights(x_t, _factor(scale_t, mask_t), m_t[:, None], log_t[:, None], mask_t)
            if v_s is not None:
                values = _load(v_s, j, v_s_m, M, D_V, WIDE_V)
                d_s = p_s * (_dot(d_o, tl.trans(values)) - shift[:, None]) - g_i[:, None] * p_t
            else:
                d_s = p_s - p_t
            if mask_s is not None:
                d_s = tl.where(x_s < _HIDDEN, 0.0, d_s)
            d_s = tl.where((j < M)[None, :], d_s, 0.0)  # beyond the keys there may be inf
            total = _dot(d_s.to(b_s.dtype), b_s, total)
        if v_s is None:
            total = total * (g_i * _UNBOOST)[:, None]
        if unit is not None:
            total = total * tl.load(unit)
        _store(_here(d_q, head, H, d_q_b, d_q_h), total * scale_s, i, d_q_n, N, D_S, WIDE_S)


@_jit
def _keys_kernel(
    q_s, q_s_b, q_s_h, q_s_n, k_s, k_s_b, k_s_h, k_s_m, v_s, v_s_b, v_s_h, v_s_m,
    q_t, q_t_b, q_t_h, q_t_n, k_t, k_t_b, k_t_h, k_t_m,
    mask_s, mask_s_b, mask_s_h, mask_s_n, mask_s_m, mask_t, mask_t_b, mask_t_h, mask_t_n, mask_t_m,
    stats, scale_s, scale_t, H, N, M, g, delta, unit, d_out, d_out_b, d_out_h, d_out_n,
    d_k, d_k_b, d_k_h, d_k_m, d_v, d_v_b, d_v_h, d_v_m,
    D_S: tl.constexpr, D_T: tl.constexpr, D_V: tl.constexpr,
    WIDE_S: tl.constexpr, WIDE_T: tl.constexpr, WIDE_V: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(M, BLOCK_M)
    head = tl.program_id(0) // tiles
    j = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    plane = (tl.num_programs(0) // tiles).to(tl.int64) * N
    q_s = _here(q_s, head, H, q_s_b, q_s_h)
    q_t = _here(q_t, head, H, q_t_b, q_t_h)
    if mask_s is not None:
        mask_s = _here(mask_s, head, H, mask_s_b, mask_s_h)
    if mask_t is not None:
        mask_t = _here(mask_t, head, H, mask_t_b, mask_t_h)
    b_s = _load(_here(k_s, head, H, k_s_b, k_s_h), j, k_s_m, M, D_S, WIDE_S)
    b_t = _load(_here(k_t, head, H, k_t_b, k_t_h), j, k_t_m, M, D_T, WIDE_T)
    if v_s is not None:
        d_out = _here(d_out, head, H, d_out_b, d_out_h)
        values = _load(_here(v_s, head, H, v_s_b, v_s_h), j, v_s_m, M, D_V, WIDE_V)
    boost: tl.constexpr = _BOOST if v_s is None else 0.0
    total_k = tl.zeros([BLOCK_M, WIDE_S], tl.float32)
    total_v = tl.zeros([BLOCK_M, WIDE_V], tl.float32)
    for start in tl.range(0, N, BLOCK_N):
        i = start + tl.arange(0, BLOCK_N)
        row = head.to(tl.int64) * N + i
        m_s, log_s = _saved(stats, mask_s, row, plane, i < N, boost)
        m_t, log_t = _saved(stats + 2 * plane, mask_t, row, plane, i < N, boost)
        g_i = tl.load(g + row, mask=i < N, other=0.0)
        g_i = _gated(_gated(g_i, log_s, mask_s), log_t, mask_t)
        a_s = _load(q_s, i, q_s_n, N, D_S, WIDE_S)
        a_t = _load(q_t, i, q_t_n, N, D_T, WIDE_T)
        x_s = _logits(b_s, a_s, scale_s, mask_s, j, i, mask_s_m, mask_s_n, M, N)
        x_t = _logits(b_t, a_t, scale_t, mask_t, j, i, mask_t_m, mask_t_n, M, N)
        p_s = _weights(x_s, _factor(scale_s, mask_s), m_s[None, :], log_s[None, :], mask_s)
        p_t = _weights(x_t, _factor(scale_t, mask_t), m_t[None, :], log_t[None, :], mask_t)
        if v_s is not None:
            d_o = _load(d_out, i, d_out_n, N, D_V, WIDE_V)
            total_v = _dot(p_s.to(d_o.dtype), d_o, total_v)
            shift = tl.load(delta + row, mask=i < N, other=0.0)
            d_s = p_s * (_dot(values, tl.trans(d_o)) - shift[None, :]) - g_i[None, :] * p_t
        else:
            d_s = (p_s - p_t) * g_i[None, :]
        if mask_s is not None:
            d_s = tl.where(x_s < _HIDDEN, 0.0, d_s)
        if d_k is not None:
            total_k = _dot(d_s.to(a_s.dtype), a_s, total_k)
    if d_k is not None:
        if v_s is None:
            total_k = total_k * _UNBOOST
        if unit is not None:
            total_k = total_k * tl.load(unit)
        _store(_here(d_k, head, H, d_k_b, d_k_h), total_k * scale_s, j, d_k_m, M, D_S, WIDE_S)
    if d_v is not None:
        _store(_here(d_v, head, H, d_v_b, d_v_h), total_v, j, d_v_m, M, D_V, WIDE_V)


KERNELS: dict[str, Any] = {"forward": _forward_kernel, "rows": _rows_kernel, "keys": _keys_kernel}
"""By the pass or the side that they are of."""
