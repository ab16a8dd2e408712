"""Exact attention losses from fused kernels alone: two operators, and no map.

The cross-entropy of attention is `CE_i = lse_s[i] - scale_s · ⟨q_s[i], (P_t K_s)[i]⟩`: the student's log-sum-exp, and
one attention call with the teacher's queries and keys and the student's keys as values. Both operators below run the
fused CPU kernels of PyTorch, forward and backward.

`attention_with_lse` is attention whose log-sum-exp can be differentiated. The kernel's backward computes
`dS = P ∘ (dO Vᵀ - δ)` with `δ_i = Σ dO_i · O_i`. A further column of ones in V, the gradient of the log-sum-exp as that
column of dO, and 0 as that column of O add `P · dlse` and leave δ as it is.

`attend_frozen` is `P x` with a constant P. Its backward is `Pᵀ g`, again an attention call: keys ask, queries answer,
with the negative log-sum-exps as a bias, and the kernel's normalisation taken back.

Shapes: B batch, H heads, N query tokens, M key tokens, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attention_transfer.attention.tiles import Side

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


def distilled(s: Side, v_s: Tensor, t: Side) -> tuple[Tensor, Tensor]:
    """The student's attention without masks, (B, H, N, D), and its cross-entropy against the teacher's, (B, H, N)."""
    scale_s, scale_t = _scale(s), _scale(t)
    out, lse_s = attention_with_lse(s.q, s.k, v_s, scale=scale_s)
    wide = torch.promote_types(s.q.dtype, t.q.dtype)
    q_t, k_t, k_s = (x.to(wide) for x in (t.q, t.k, s.k))
    if q_t.requires_grad or k_t.requires_grad:
        averaged, _ = attention_with_lse(q_t, k_t, k_s, scale=scale_t)
    else:
        averaged = attend_frozen(q_t, k_t, k_s, scale=scale_t)
    return out, lse_s - scale_s * _dot(s.q, averaged)


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
        width = q.shape[-1]
        d_out = torch.cat([d_out, d_lse[..., None].to(d_out.dtype)], dim=-1)
        v = F.pad(v, (0, 1), value=1.0)
        q, k, out = (F.pad(x, (0, 1)) for x in (q, k, out))
        grads = _backward(d_out, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=ctx.scale)
        return (*(grad[..., :width] for grad in grads), None, None)


class _AttendFrozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        wide = max(q.shape[-1], x.shape[-1])
        out, lse = _forward(
            _widened(q, wide), _widened(k, wide), _widened(x, wide), 0.0, False, attn_mask=mask, scale=scale
        )
        ctx.save_for_backward(q, k, mask, lse)
        ctx.scale = scale
        averaged: Tensor = out[..., : x.shape[-1]]
        return averaged

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, mask, lse = ctx.saved_tensors
        wide = max(q.shape[-1], d_out.shape[-1])
        bias = -lse[..., None, :].to(q.dtype)
        if mask is not None:
            bias = bias + mask.transpose(-2, -1)
        averaged, total = _forward(
            _widened(k, wide), _widened(q, wide), _widened(d_out, wide), 0.0, False, attn_mask=bias, scale=ctx.scale
        )
        d_x = averaged[..., : d_out.shape[-1]] * total.exp()[..., None].to(averaged.dtype)
        return None, None, d_x, None, None


def _widened(x: Tensor, width: int) -> Tensor:
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))
