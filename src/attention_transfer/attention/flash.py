"""Exact attention losses from fused kernels alone: two operators, and no map.

The cross-entropy of attention is `CE_i = lse_s[i] - scale_s · ⟨q_s[i], (P_t K_s)[i]⟩`: the student's log-sum-exp, and
one attention call with the teacher's queries and keys and the student's keys as values. Two operators give both, their
gradients included, from PyTorch's own kernels (`fused.py`).

`attend` is attention whose log-sum-exp can be differentiated. A kernel's backward pass computes
`dS = P ∘ (dO Vᵀ - δ)` with `δ_i = Σ dO_i · O_i`; it gets an O for which δ is less by dlse. Where a row has no dO to
hold it, a further column of ones in V, dlse as that column of dO, and 0 as that column of O add the same; or, on a GPU,
a dO that is made up.

`attend_frozen` is `P x` with a constant P. Its backward is `Pᵀ g`, again an attention call: keys ask, queries answer
with their log-sum-exps taken off, and the kernel's normalisation is taken back.

Shapes: B batch, H heads, N query tokens, M key tokens, D head dimension.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attention_transfer.attention import fused
from attention_transfer.attention.fused import Attended
from attention_transfer.attention.operands import AttentionCall, tile_rows


def attend(q_BHND: Tensor, k_BHMD: Tensor, v_BHME: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its logits by PyTorch's kernels, both differentiable in q, k and v.

    Args:
        q_BHND: queries, (B, H, N, D).
        k_BHMD: keys, (B, H, M, D).
        v_BHME: values, (B, H, M, E).
        scale: factor on q·kᵀ.

    Returns:
        The output, (B, H, N, E), and the log-sum-exp in float32 or wider, (B, H, N).
    """
    values = v_BHME.view_as(v_BHME)  # torch.compile refuses a function that gets one tensor as keys and values
    out, lse = _Attention.apply(*fused.widened(q_BHND, k_BHMD, values), scale)
    return out[..., : v_BHME.shape[-1]], lse


def attend_frozen(q_BHND: Tensor, k_BHMD: Tensor, x_BHME: Tensor, *, scale: float) -> Tensor:
    """`softmax(scale · q kᵀ) x`, differentiable in x alone.

    Args:
        q_BHND: queries, (B, H, N, D), constants.
        k_BHMD: keys, (B, H, M, D), constants.
        x_BHME: what is averaged, (B, H, M, E).
        scale: factor on q·kᵀ.

    Returns:
        (B, H, N, E).
    """
    attended: Tensor = _FrozenAttention.apply(q_BHND, k_BHMD, x_BHME, scale)
    return attended


def cross_entropy(s: AttentionCall, t: AttentionCall) -> Tensor:
    """Cross-entropy of two attentions without masks, (B, H, N)."""
    return distilled(replace(s, v=s.k), t)[1]


def distilled(s: AttentionCall, t: AttentionCall, *, mean: bool = False) -> tuple[Tensor, Tensor]:
    """The student's attention without masks, and its cross-entropy against the teacher's.

    Args:
        s: the student's side.
        t: the teacher's side, of which no values are read.
        mean: the mean over rows is wanted, whose gradient needs nothing of the teacher once it is computed.

    Returns:
        The output, (B, H, N, E), and nats in float32 or wider: per row, (B, H, N), or their mean, a scalar.
    """
    constant = not (t.q.requires_grad or t.k.requires_grad)
    if mean and constant and torch.is_grad_enabled():
        operands = fused.widened(s.q, s.k, s.v.view_as(s.v))  # see attend
        out, ce = _Distilled.apply(*operands, t.q, t.k, s.scale, t.scale)
        return out[..., : s.v.shape[-1]], ce
    out, lse_s = attend(s.q, s.k, s.v, scale=s.scale)
    wide = torch.promote_types(s.q.dtype, t.q.dtype)
    q_t, k_t, k_s = (x.to(wide) for x in (t.q, t.k, s.k))
    if constant:
        averaged = attend_frozen(q_t, k_t, k_s, scale=t.scale)
    else:
        averaged, _ = attend(q_t, k_t, k_s, scale=t.scale)
    rows_BHN = lse_s - s.scale * _dot(s.q, averaged)
    return out, rows_BHN.mean() if mean else rows_BHN


def entropy(t: AttentionCall) -> Tensor:
    """Entropy of an attention's rows, (B, H, N): `lse_t - scale_t · ⟨q_t, P_t K_t⟩`."""
    averaged, lse_t = attend(t.q, t.k, t.k, scale=t.scale)
    return lse_t - t.scale * _dot(t.q, averaged)


def _dot(a_BHND: Tensor, b_BHND: Tensor) -> Tensor:
    """Inner products of the rows, in float32 or wider."""
    wide = torch.promote_types(a_BHND.dtype, torch.float32)
    return (a_BHND.to(wide) * b_BHND.to(wide)).sum(dim=-1)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        attended = fused.forward(q, k, v, scale=scale)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, attended.out, attended.lse, *attended.extras)
        ctx.scale = scale
        return attended.out, attended.lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *extras = ctx.saved_tensors
        return *_gradients(d_out, d_lse, q, k, v, Attended(out, lse, tuple(extras)), ctx.scale), None


def _gradients(
    d_out: Tensor | None, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, attended: Attended, scale: float
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of q, k and v from those of an attention's output and log-sum-exps."""
    if d_out is None and d_lse is None:
        return None, None, None
    unread = d_out is None
    if d_out is None:  # with values of 0 a gradient that is made up below leaves no trace
        d_out, v = torch.zeros_like(attended.out), torch.zeros_like(v)
    d_out = d_out if d_out.stride(-1) == 1 else d_out.contiguous()
    if d_lse is None:
        d_q, d_k, d_v = fused.backward(d_out, q, k, v, attended, scale=scale)
    elif d_out.is_cuda or _carries(d_out, d_lse):
        d_out, out = _shifted(d_out, attended.out, d_lse)
        d_q, d_k, d_v = fused.backward(d_out, q, k, v, attended._replace(out=out), scale=scale)
    else:
        d_q, d_k, d_v = _by_a_column(d_out, d_lse, q, k, v, attended, scale)
    return d_q, d_k, v if unread else d_v


def _carries(d_out: Tensor, d_lse: Tensor) -> bool:
    """Whether every row of the output has a gradient that is long enough for a shift.

    It is 0 in the last block of a network that reads the class token alone. A graph that is compiled can't look, and a
    GPU would have to wait for the answer.
    """
    if torch.compiler.is_compiling():
        return False
    length_BHN = torch.linalg.vector_norm(d_out, dim=-1, dtype=torch.promote_types(d_out.dtype, torch.float32))
    return not bool((length_BHN < _least(d_out.dtype) * d_lse.abs()).any())


def _by_a_column(
    d_out: Tensor, d_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, attended: Attended, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients, with those of the log-sum-exps in a further column: of ones in V, and of zeros in O."""
    width = q.shape[-1]
    d_out = torch.cat([d_out, d_lse[..., None].to(d_out.dtype)], dim=-1)
    q, k, out = (F.pad(x, (0, 1)) for x in (q, k, attended.out))
    attended = attended._replace(out=out)
    d_q, d_k, d_v = fused.backward(d_out, q, k, F.pad(v, (0, 1), value=1.0), attended, scale=scale)
    return d_q[..., :width], d_k[..., :width], d_v[..., :width]


def _shifted(d_out: Tensor, out: Tensor, d_lse: Tensor) -> tuple[Tensor, Tensor]:
    """A gradient of the output and an output for which `δ = Σ dO · O` is less by d_lse.

    The output moves along its gradient, by d_lse over that one's length. On a GPU, which is not asked whether there are
    any, a row whose gradient is too short for this gets one that is: `_least` of what d_lse adds. Neighbouring rows
    have theirs in other columns, and with another sign on the next round, so that the traces in dV don't add up.
    """
    wide = torch.promote_types(out.dtype, torch.float32)
    least_BHN1 = (_least(out.dtype) * d_lse[..., None].abs()).to(out.dtype).to(wide)  # as it will be in d_out
    length_BHN1 = torch.linalg.vector_norm(d_out, dim=-1, keepdim=True, dtype=wide)
    is_short_BHN1 = length_BHN1 < least_BHN1
    d_out = torch.where(is_short_BHN1, (least_BHN1 * _one_each(d_out)).to(d_out.dtype), d_out)
    length_BHN1 = torch.where(is_short_BHN1, least_BHN1, length_BHN1)
    way_BHND = d_out.to(wide) / length_BHN1.clamp_min(torch.finfo(wide).tiny)
    step_BHN1 = torch.where(length_BHN1 > 0, d_lse[..., None] / length_BHN1, 0.0)
    return d_out, (out.to(wide) - way_BHND * step_BHN1).to(out.dtype)


def _one_each(x_BHND: Tensor) -> Tensor:
    """A 1 or -1 in each row and 0 elsewhere, (N, D): down the diagonal, and again with the other sign."""
    rows, width = x_BHND.shape[-2:]
    row_N1 = torch.arange(rows, device=x_BHND.device)[:, None]
    sign_N1 = 1 - 2 * (row_N1 // width % 2)
    return torch.where(row_N1 % width == torch.arange(width, device=x_BHND.device), sign_N1, 0)


def _least(dtype: torch.dtype) -> float:
    """The shortest gradient of a row that can carry that of its log-sum-exp, as a share of it.

    Numbers in the output become as large as 1 over it. In float16, of which the least number is 2^-24, it is no shorter
    than that type's rounding.
    """
    half = {torch.bfloat16: 2.0**-14, torch.float16: 2.0**-11}
    return half.get(dtype, 4 * torch.finfo(dtype).eps)


class _FrozenAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, x: Tensor, scale: float) -> Tensor:
        averaged, lse = fused.averaged(q, k, x, scale=scale)
        ctx.save_for_backward(q, k, lse)
        ctx.scale = scale
        return averaged

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, lse = ctx.saved_tensors
        return None, None, _gathered(q, k, d_out, lse, ctx.scale), None


class _Distilled(torch.autograd.Function):
    """Attention, and its mean cross-entropy against a constant teacher's, by PyTorch's kernels.

    The loss's part of the gradients is `P_t K_s` and `P_tᵀ Q_s` up to a factor. Both are formed in the forward pass and
    kept, in the place of the teacher's operands.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, q_t: Tensor, k_t: Tensor, scale_s: float, scale_t: float
    ) -> tuple[Tensor, Tensor]:
        attended = fused.forward(q, k, v, scale=scale_s)
        averaged, gathered = _both_ways(q_t, k_t, q, k, scale_t)
        ctx.save_for_backward(q, k, v, averaged, gathered, attended.out, attended.lse, *attended.extras)
        ctx.scale = scale_s
        return attended.out, attended.lse.mean() - scale_s * _dot(q, averaged).mean()

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, averaged, gathered, out, lse, *extras = ctx.saved_tensors
        each = g / lse.numel()
        attended = Attended(out, lse, tuple(extras))
        d_q, d_k, d_v = _gradients(d_out, each.expand_as(lse), q, k, v, attended, ctx.scale)
        assert d_q is not None
        assert d_k is not None
        factor = (-ctx.scale * each).to(averaged.dtype)
        return d_q.addcmul_(averaged, factor), d_k.addcmul_(gathered, factor), d_v, None, None, None, None


def _both_ways(q_t: Tensor, k_t: Tensor, q_s: Tensor, k_s: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`P_t k_s` and `P_tᵀ q_s`, (B, H, N, D) and (B, H, M, D), in the student's dtype."""
    wide = torch.promote_types(q_s.dtype, q_t.dtype)
    # A graph that is compiled would unroll the tiles; half precision would round the logits in them.
    tiled = not torch.compiler.is_compiling() and not q_s.is_cuda and wide in (torch.float32, torch.float64)
    if tiled:
        return _both_ways_in_tiles(q_t, k_t, q_s, k_s, scale)
    q_t, k_t = q_t.to(wide), k_t.to(wide)
    averaged, lse = fused.averaged(q_t, k_t, k_s.to(wide), scale=scale)
    gathered = _gathered(q_t, k_t, q_s.to(wide), lse, scale)
    return averaged.to(q_s.dtype), gathered.to(q_s.dtype)


def _both_ways_in_tiles(q_t: Tensor, k_t: Tensor, q_s: Tensor, k_s: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`_both_ways` on the CPU: a tile of P_t that stays in the cache serves both, faster than two fused calls."""
    wide = torch.promote_types(q_s.dtype, q_t.dtype)
    batch, heads, rows, width = q_s.shape
    averaged, gathered = (x.new_empty(batch, heads, x.shape[2], width) for x in (q_s, k_s))
    size = min(rows, 2 * tile_rows(q_t[:1], k_t[:1]))
    buffer = q_t.new_empty(heads * size * k_t.shape[2], dtype=wide)
    for image in range(batch):
        turned_k_t, image_k_s = k_t[image].to(wide).mT, k_s[image].to(wide)
        total = gathered[image].to(wide)
        for start in range(0, rows, size):
            tile = slice(start, min(start + size, rows))
            p = buffer[: heads * (tile.stop - start) * k_t.shape[2]].view(heads, -1, k_t.shape[2])  # dense, for MKL
            p.baddbmm_(q_t[image, :, tile].to(wide), turned_k_t, beta=0, alpha=scale)
            torch.softmax(p, dim=-1, out=p)
            if size == rows and averaged.dtype == wide:
                torch.bmm(p, image_k_s, out=averaged[image])
            else:
                averaged[image, :, tile] = torch.bmm(p, image_k_s)
            total.baddbmm_(p.mT, q_s[image, :, tile].to(wide), beta=int(start > 0))
        if total.dtype != gathered.dtype:
            gathered[image] = total
    return averaged, gathered


def _gathered(q: Tensor, k: Tensor, x: Tensor, lse: Tensor, scale: float) -> Tensor:
    """`Pᵀ x` of `P = exp(scale · q kᵀ - lse)` and x (B, H, N, E): (B, H, M, E). Keys ask, and queries answer."""
    averaged, total = fused.averaged(k, q, x, scale=scale, key_bias=-lse)
    return (averaged * total.exp()[..., None]).to(x.dtype)
