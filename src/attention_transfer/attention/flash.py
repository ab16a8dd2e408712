"""Exact attention losses from fused kernels alone: two operators, and no map.

The cross-entropy of attention is `CE_i = lse_s[i] - scale_s · ⟨q_s[i], (P_t K_s)[i]⟩`: the student's log-sum-exp, and
one attention call with the teacher's queries and keys and the student's keys as values. Both operators below run the
fused CPU kernels of PyTorch, forward and backward.

`attention_with_lse` is attention whose log-sum-exp can be differentiated. The kernel's backward computes
`dS = P ∘ (dO Vᵀ - δ)` with `δ_i = Σ dO_i · O_i`, and gets an O for which δ is less by dlse. Where a row has no dO to
hold it, a further column of ones in V, dlse as that column of dO, and 0 as that column of O add the same.

`attend_frozen` is `P x` with a constant P. Its backward is `Pᵀ g`, again an attention call: keys ask, queries answer,
and the kernel's normalisation is taken back.

Shapes: B batch, H heads, N query tokens, M key tokens, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attention_transfer.attention.tiles import Side, tile_rows

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attention_with_lse(
    q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor, *, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its logits, both differentiable in q, k and v.

    Args:
        q_BHND: queries, (B, H, N, D), on the CPU.
        k_BHMD: keys, (B, H, M, D).
        v_BHMD: values, (B, H, M, D).
        scale: factor on q·kᵀ.
        mask: additive mask without gradient, broadcastable to (B, H, N, M).

    Returns:
        The output, (B, H, N, D), and the log-sum-exp in float32 or wider, (B, H, N).
    """
    wide = max(q_BHND.shape[-1], v_BHMD.shape[-1])
    values = v_BHMD.view_as(v_BHMD)  # torch.compile refuses a function that gets one tensor as keys and values
    operands = (_widened(x, wide) for x in (q_BHND, k_BHMD, values))
    out, lse = _AttentionWithLse.apply(*operands, mask, scale)
    return out[..., : v_BHMD.shape[-1]], lse


def attend_frozen(
    q_BHND: Tensor, k_BHMD: Tensor, x_BHME: Tensor, *, scale: float, mask: Tensor | None = None
) -> Tensor:
    """`softmax(scale · q kᵀ + mask) x`, differentiable in x alone.

    Args:
        q_BHND: queries, (B, H, N, D), constants, on the CPU.
        k_BHMD: keys, (B, H, M, D), constants.
        x_BHME: what is averaged, (B, H, M, E).
        scale: factor on q·kᵀ.
        mask: additive mask, broadcastable to (B, H, N, M).

    Returns:
        (B, H, N, E).
    """
    averaged: Tensor = _AttendFrozen.apply(q_BHND, k_BHMD, x_BHME, mask, scale)
    return averaged


def cross_entropy(s: Side, t: Side) -> Tensor:
    """Cross-entropy of two attentions without masks, (B, H, N)."""
    return distilled(s, s.k, t)[1]


def distilled(s: Side, v_s: Tensor, t: Side, *, mean: bool = False) -> tuple[Tensor, Tensor]:
    """The student's attention without masks, and its cross-entropy against the teacher's.

    Args:
        s: the student's side.
        v_s: the student's values, (B, H, M, E).
        t: the teacher's side.
        mean: the mean over rows is wanted, whose gradient needs nothing of the teacher once it is computed.

    Returns:
        The output, (B, H, N, E), and nats in float32 or wider: per row, (B, H, N), or their mean, a scalar.
    """
    constant = not (t.q.requires_grad or t.k.requires_grad)
    if mean and constant and torch.is_grad_enabled():
        width = max(s.q.shape[-1], v_s.shape[-1])
        values = _widened(v_s.view_as(v_s), width)  # see attention_with_lse
        out, ce = _Distilled.apply(_widened(s.q, width), _widened(s.k, width), values, t.q, t.k, _scale(s), _scale(t))
        return out[..., : v_s.shape[-1]], ce
    out, lse_s = attention_with_lse(s.q, s.k, v_s, scale=_scale(s))
    wide = torch.promote_types(s.q.dtype, t.q.dtype)
    q_t, k_t, k_s = (x.to(wide) for x in (t.q, t.k, s.k))
    if constant:
        averaged = attend_frozen(q_t, k_t, k_s, scale=_scale(t))
    else:
        averaged, _ = attention_with_lse(q_t, k_t, k_s, scale=_scale(t))
    rows_BHN = lse_s - _scale(s) * _dot(s.q, averaged)
    return out, rows_BHN.mean() if mean else rows_BHN


def entropy(t: Side) -> Tensor:
    """Entropy of an attention's rows, (B, H, N): `lse_t - scale_t · ⟨q_t, P_t K_t⟩`."""
    averaged, lse_t = attention_with_lse(t.q, t.k, t.k, scale=_scale(t))
    return lse_t - _scale(t) * _dot(t.q, averaged)


def _scale(side: Side) -> float:
    return side.q.shape[-1] ** -0.5 if side.scale is None else side.scale


def _dot(a_BHND: Tensor, b_BHND: Tensor) -> Tensor:
    """Inner products of the rows, in float32 or wider."""
    wide = torch.promote_types(a_BHND.dtype, torch.float32)
    return (a_BHND.to(wide) * b_BHND.to(wide)).sum(dim=-1)


class _AttentionWithLse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = _forward(q, k, v, 0.0, False, attn_mask=mask, scale=scale)
        ctx.save_for_backward(q, k, v, mask, out, lse)
        ctx.scale = scale
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, out, lse = ctx.saved_tensors
        return (*_gradients(d_out, d_lse, q, k, v, mask, out, lse, ctx.scale), None, None)


def _gradients(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v from those of an attention's output and log-sum-exps."""
    width = q.shape[-1]
    d_out = _widened(d_out, width)
    shifted = _shifted(out, d_out, d_lse)
    if shifted is not None:
        out = shifted
    else:
        d_out = torch.cat([d_out, d_lse[..., None].to(d_out.dtype)], dim=-1)
        v = F.pad(v, (0, 1), value=1.0)
        q, k, out = F.pad(q, (0, 1)), F.pad(k, (0, 1)), F.pad(out, (0, 1))
    d_q, d_k, d_v = _backward(d_out, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=scale)
    return d_q[..., :width], d_k[..., :width], d_v[..., :width]


def _shifted(out: Tensor, d_out: Tensor, d_lse: Tensor) -> Tensor | None:
    """An output for which `Σ dO · O` is less by d_lse, or `None` where some row's dO is too small for that.

    So it is in the last block of a network that reads the class token alone. A graph that is compiled can't look.
    """
    if torch.compiler.is_compiling() or out.dtype not in (torch.float32, torch.float64) or not out.numel():
        return None
    size_BHN1 = torch.linalg.vector_norm(d_out, dim=-1, keepdim=True)
    if not size_BHN1.min() > 1e-15:
        return None
    return torch.addcmul(out, d_out, d_lse[..., None] / size_BHN1.square(), value=-1)


class _AttendFrozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        averaged, lse = _averaged(q, k, x, mask, scale)
        ctx.save_for_backward(q, k, mask, lse)
        ctx.scale = scale
        return averaged

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, mask, lse = ctx.saved_tensors
        return None, None, _gathered(q, k, d_out, lse, mask, ctx.scale), None, None


class _Distilled(torch.autograd.Function):
    """Attention, and its mean cross-entropy against a constant teacher's.

    The loss's part of the gradients is `P_t K_s` and `P_tᵀ Q_s` up to a factor. Both are formed in the forward pass and
    kept, in the place of the teacher's operands.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, q_t: Tensor, k_t: Tensor, scale_s: float, scale_t: float
    ) -> tuple[Tensor, Tensor]:
        out, lse = _forward(q, k, v, 0.0, False, scale=scale_s)
        averaged, gathered = _both_ways(q_t, k_t, q, k, scale_t)
        ctx.save_for_backward(q, k, v, out, lse, averaged, gathered)
        ctx.scale = scale_s
        return out, lse.mean() - scale_s * _dot(q, averaged).mean()

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, averaged, gathered = ctx.saved_tensors
        each = g / lse.numel()
        d_q, d_k, d_v = _gradients(d_out, each.expand_as(lse), q, k, v, None, out, lse, ctx.scale)
        factor = (-ctx.scale * each).to(averaged.dtype)
        return d_q.addcmul_(averaged, factor), d_k.addcmul_(gathered, factor), d_v, None, None, None, None


def _both_ways(q_t: Tensor, k_t: Tensor, q_s: Tensor, k_s: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`P_t k_s` and `P_tᵀ q_s`, (B, H, N, D) and (B, H, M, D), in the student's dtype.

    A tile of P_t that stays in the cache serves both, which is faster than asking a fused kernel twice.
    """
    if torch.compiler.is_compiling():  # would unroll the tiles
        wide = torch.promote_types(q_s.dtype, q_t.dtype)
        q_t, k_t = q_t.to(wide), k_t.to(wide)
        averaged, lse = _averaged(q_t, k_t, k_s.to(wide), None, scale)
        gathered = _gathered(q_t, k_t, q_s.to(wide), lse, None, scale)
        return averaged.to(q_s.dtype), gathered.to(q_s.dtype)
    wide = torch.promote_types(torch.promote_types(q_s.dtype, q_t.dtype), torch.float32)
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


def _averaged(q: Tensor, k: Tensor, x: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """`P x`, (B, H, N, E), and the log-sum-exps of the logits, (B, H, N)."""
    wide = max(q.shape[-1], x.shape[-1])
    q, k, widened = _widened(q, wide), _widened(k, wide), _widened(x, wide)
    out, lse = _forward(q, k, widened, 0.0, False, attn_mask=mask, scale=scale)
    return out[..., : x.shape[-1]], lse


_LARGEST = 256.0  # log-sum-exp of which the difference to another has all its digits but the last two
_SPREAD = 40.0  # of log-sum-exps; what is lost beyond exp(-87), float32's reach, is then below 1e-20 of a weight


def _gathered(q: Tensor, k: Tensor, x: Tensor, lse: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """`Pᵀ x` of `P = exp(scale · q kᵀ + mask - lse)` and x (B, H, N, E): (B, H, M, E).

    Keys ask and queries answer. The queries' log-sum-exps are a bias then, which makes the kernel half as fast; so
    they go into x as factors, where they are not too far apart for that.
    """
    dtype = x.dtype
    if dtype == torch.float16:  # has no room for the factors
        q, k, x = (y.float() for y in (q, k, x))
    if mask is None and _are_close(lse):
        least = lse.amin(dim=-1, keepdim=True)
        averaged, total = _averaged(k, q, x * (least - lse).exp()[..., None].to(x.dtype), None, scale)
        return (averaged * (total - least).exp()[..., None]).to(dtype)
    if x.dtype == torch.bfloat16:  # rounded log-sum-exps would be errors in the exponents of all weights
        q, k, x = (y.float() for y in (q, k, x))
    bias = -lse[..., None, :].to(x.dtype)
    if mask is not None:
        bias = bias + mask.to(x.dtype).transpose(-2, -1)
    averaged, total = _averaged(k, q, x, bias, scale)
    return (averaged * total.exp()[..., None]).to(dtype)


def _are_close(lse: Tensor) -> bool:
    """Whether log-sum-exps, (B, H, N), are near 0, and in each head each other; a compiled graph can't look."""
    if torch.compiler.is_compiling() or not lse.numel():
        return False
    least, most = lse.aminmax(dim=-1)
    return bool((most - least).max() < _SPREAD) and bool(torch.maximum(most, -least).max() < _LARGEST)


def _widened(x: Tensor, width: int) -> Tensor:
    """The operand with its last dimension dense, as the kernels take it for granted, and padded to a width."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))
