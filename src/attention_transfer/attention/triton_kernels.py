"""Exact attention losses on the GPU in one pass over the keys: Triton kernels in which no map is ever stored.

This is what callers see; the programs themselves are in `triton_programs.py`.

Shapes: B batch, H heads, N query tokens, M key tokens, D and E head dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attention_transfer.attention import gpu
from attention_transfer.attention.operands import AttentionCall
from attention_transfer.attention.triton_launch import Operands, launch, strided
from attention_transfer.attention.triton_programs import INSTALLED, INTERPRETS

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_WIDEST = 128


def available() -> str | None:
    """Why the kernels can't run on this machine, or `None`."""
    if not INSTALLED:
        return "Triton is not installed, or older than 3.4"
    if INTERPRETS:
        return None
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if gpu.before_ampere():
        return "the GPU is older than Ampere"
    return None


def obstacle(s: AttentionCall, t: AttentionCall, v_s: Tensor | None = None) -> str | None:
    """Why the kernels can't serve these operands, or `None`."""
    reason = available()
    if reason:
        return reason
    of_student = [s.q, s.k] if v_s is None else [s.q, s.k, v_s]
    masks = [mask for mask in (s.mask, t.mask) if mask is not None]
    operands = [*of_student, t.q, t.k]
    devices = {x.device for x in operands + masks}
    if len(devices) > 1 or not (s.q.is_cuda or INTERPRETS):
        return f"the operands are on {' and '.join(sorted(map(str, devices)))}, not on one CUDA device"
    for side in (of_student, [t.q, t.k]):
        dtypes = {x.dtype for x in side}
        if len(dtypes) > 1 or side[0].dtype not in _DTYPES:
            names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            return f"queries, keys and values of one side are {names}, not all float16, bfloat16 or float32"
    misfit = _misfit(s, t, v_s)
    if misfit:
        return misfit
    if any(x.shape[-1] > _WIDEST for x in operands):
        return f"a head dimension is over {_WIDEST}"
    if not all(mask.is_floating_point() or mask.dtype == torch.bool for mask in masks):
        return "a mask is neither boolean nor floating"
    if s.scale < 0 or t.scale < 0:
        return "a scale is negative"
    if torch.is_grad_enabled() and (t.q.requires_grad or t.k.requires_grad):
        return "the teacher requires a gradient, and the kernels have none for it"
    if torch.is_grad_enabled() and any(mask.requires_grad for mask in masks):
        return "a mask requires a gradient, and the kernels have none for it"
    return None


def _misfit(s: AttentionCall, t: AttentionCall, v_s: Tensor | None) -> str | None:
    """Which shapes don't fit together: kernels would read beyond their operands."""
    expected_k = (*s.q.shape[:2], *s.k.shape[2:3], s.q.shape[-1])
    expected = {
        "the student's keys": (s.k, expected_k),
        "the teacher's queries": (t.q, (*s.q.shape[:3], *t.q.shape[3:])),
        "the teacher's keys": (t.k, (*expected_k[:3], t.q.shape[-1])),
    }
    if v_s is not None:
        expected["the student's values"] = (v_s, (*expected_k[:3], *v_s.shape[3:]))
    if s.q.dim() != 4:
        return f"the student's queries are {tuple(s.q.shape)}, not (B, H, N, D)"
    for name, (x, shape) in expected.items():
        if tuple(x.shape) != shape:
            return f"{name} are {tuple(x.shape)}, which doesn't fit the student's queries {tuple(s.q.shape)}"
    return None


def cross_entropy(s: AttentionCall, t: AttentionCall) -> Tensor:
    """Cross-entropy of two attentions, row by row.

    Args:
        s: the student's side; its queries and keys may require gradients.
        t: the teacher's side, a constant. There must be no `obstacle` to the two.

    Returns:
        Nats per query row, float32, (B, H, N).
    """
    return _run(s, None, t, entropy=False)[0]


def kl(s: AttentionCall, t: AttentionCall) -> Tensor:
    """KL(P_t ‖ P_s), row by row; arguments and result are those of `cross_entropy`."""
    ce, entropy, _ = _run(s, None, t, entropy=True)
    return ce - entropy


def distilled(s: AttentionCall, v_s: Tensor, t: AttentionCall) -> tuple[Tensor, Tensor]:
    """The student's attention with values v_s (B, H, M, E), and its `cross_entropy`, in one pass.

    Arguments are those of `cross_entropy`.

    Returns:
        The attention's output in the student's dtype, (B, H, N, E), and nats per query row, float32, (B, H, N).
    """
    ce, _, out = _run(s, v_s, t, entropy=False)
    return out, ce


def _run(s: AttentionCall, v_s: Tensor | None, t: AttentionCall, *, entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    results: tuple[Tensor, Tensor, Tensor] = _Fused.apply(
        s.q, s.k, v_s, t.q, t.k, s.mask, t.mask, float(s.scale), float(t.scale), entropy
    )
    return results


class _Fused(torch.autograd.Function):
    """Cross-entropy, the teacher's entropy and the student's attention; what is not asked for is an empty tensor."""

    @staticmethod
    def forward(
        ctx: Any,
        q_s: Tensor,
        k_s: Tensor,
        v_s: Tensor | None,
        q_t: Tensor,
        k_t: Tensor,
        mask_s: Tensor | None,
        mask_t: Tensor | None,
        scale_s: float,
        scale_t: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        operands = (q_s, k_s, v_s, q_t, k_t, mask_s, mask_t)
        ce, own, out, stats = _forward(*operands, scale_s, scale_t, entropy)
        ctx.scales = (scale_s, scale_t)
        ctx.save_for_backward(*operands, out, stats)
        ctx.mark_non_differentiable(own)
        return ce, own, out

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor, d_out: Tensor) -> tuple[Tensor | None, ...]:
        *operands, out, stats = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        gradients = _backward(g, d_out, *operands, out, stats, *ctx.scales, needs)
        return *(x if needed else None for x, needed in zip(gradients, needs, strict=True)), *[None] * 7


# Operators, so that what compiles or traces a model sees one call in each pass. None of them can be differentiated:
# a second derivative is refused.


@torch.library.custom_op("attention_transfer::distil_forward", mutates_args=())
def _forward(
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor | None,
    q_t: Tensor,
    k_t: Tensor,
    mask_s: Tensor | None,
    mask_t: Tensor | None,
    scale_s: float,
    scale_t: float,
    entropy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy, the teacher's entropy, the student's attention, and what the backward pass needs of the rows."""
    ce, own, out, stats = _results(q_s, v_s, entropy)
    operands = _operands((q_s, k_s, v_s, q_t, k_t), (mask_s, mask_t), stats, (scale_s, scale_t))
    launch("forward", operands, *strided(None if v_s is None else out), ce, own if entropy else None)
    return ce, own, out, stats


@_forward.register_fake
def _(*operands: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _results(operands[0], operands[2], entropy=operands[-1])


def _results(q_s: Tensor, v_s: Tensor | None, entropy: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the forward pass writes to."""
    batch, heads, n, _ = q_s.shape
    ce = q_s.new_empty((batch, heads, n), dtype=torch.float32)
    own = torch.empty_like(ce) if entropy else ce.new_empty(0)
    # Tokens before heads in memory: joining the heads afterwards copies nothing.
    out = q_s.new_empty(0) if v_s is None else q_s.new_empty((batch, n, heads, v_s.shape[-1])).transpose(1, 2)
    return ce, own, out, q_s.new_empty((4, batch, heads, n), dtype=torch.float32)


@torch.library.custom_op("attention_transfer::distil_backward", mutates_args=())
def _backward(
    g: Tensor,
    d_out: Tensor,
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor | None,
    q_t: Tensor,
    k_t: Tensor,
    mask_s: Tensor | None,
    mask_t: Tensor | None,
    out: Tensor,
    stats: Tensor,
    scale_s: float,
    scale_t: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q_s, k_s and v_s, of which `needs` says which are wanted; the others are empty tensors."""
    g, unit = g.float().contiguous(), None
    if v_s is None and q_s.dtype == torch.float16 and g.numel():
        unit = g.abs().amax().clamp_min(1e-30)  # nothing that is rounded to float16 is over 2^12 then
        g = g / unit
    delta = None if v_s is None else torch.empty_like(g)
    gradients = _gradients(q_s, k_s, v_s, needs)
    d_q, d_k, d_v = (x if needed else None for x, needed in zip(gradients, needs, strict=True))
    operands = _operands((q_s, k_s, v_s, q_t, k_t), (mask_s, mask_t), stats, (scale_s, scale_t))
    arriving = (g, delta, unit, *strided(None if v_s is None else _readable(d_out)))
    if d_q is not None or v_s is not None:  # writes delta, which the other one reads
        launch("rows", operands, *arriving, *strided(None if v_s is None else out), *strided(d_q))
    if d_k is not None or d_v is not None:
        launch("keys", operands, *arriving, *strided(d_k), *strided(d_v))
    return gradients


@_backward.register_fake
def _(*operands: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(operands[2], operands[3], operands[4], operands[-1])


def _gradients(q_s: Tensor, k_s: Tensor, v_s: Tensor | None, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """What the backward pass writes to; an empty tensor where nothing is wanted."""
    d_q, d_k, d_v = (
        torch.empty_like(x) if needed and x is not None else q_s.new_empty(0)
        for x, needed in zip((q_s, k_s, v_s), needs, strict=True)
    )
    return d_q, d_k, d_v


def _operands(
    tensors: tuple[Tensor | None, ...], masks: tuple[Tensor | None, ...], stats: Tensor, scales: tuple[float, float]
) -> Operands:
    """The same as a kernel can read them: with dense rows, and with masks of the logits' shape, (B, H, N, M)."""
    q_s, k_s, *_ = tensors
    assert q_s is not None
    assert k_s is not None
    whole = (*q_s.shape[:3], k_s.shape[2])
    expanded = tuple(None if mask is None else mask.expand(whole) for mask in masks)
    return Operands(tuple(None if x is None else _readable(x) for x in tensors), expanded, stats, scales)


def _readable(x: Tensor) -> Tensor:
    """The same with adjacent elements in the last dimension."""
    return x if x.stride(-1) == 1 else x.contiguous()
