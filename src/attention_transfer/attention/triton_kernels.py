"""Exact attention losses on the GPU in one pass over the keys: Triton kernels in which no map is ever stored.

This is what callers see; the programs themselves are in `triton_programs.py`.

Shapes: B batch, H heads, N query tokens, M key tokens, D and E head dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attention_transfer.attention.operands import AttentionCall
from attention_transfer.attention.triton_programs import INSTALLED, INTERPRETS, launch, next_power_of_2
from attention_transfer.errors import UserError

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
    if torch.version.cuda and torch.cuda.get_device_capability() < (8, 0):
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


def cross_entropy(s: AttentionCall, t: AttentionCall, *, tune: bool = True) -> Tensor:
    """Cross-entropy of two attentions, row by row.

    Args:
        s: the student's side; its queries and keys may require gradients.
        t: the teacher's side, a constant.
        tune: time some tile sizes on the first call for a size, head dimension and dtype, which takes up to a minute,
            and keep the fastest.

    Returns:
        Nats per query row, float32, (B, H, N).

    Raises:
        UserError: the kernels can't serve these operands, with the reason.
    """
    ce: Tensor = _run(s, None, t, entropy=False, tune=tune)[0]
    return ce


def kl(s: AttentionCall, t: AttentionCall, *, tune: bool = True) -> Tensor:
    """KL(P_t ‖ P_s), row by row; arguments, result and errors are those of `cross_entropy`."""
    ce, entropy, _ = _run(s, None, t, entropy=True, tune=tune)
    divergence: Tensor = ce - entropy
    return divergence


def distilled(s: AttentionCall, v_s: Tensor, t: AttentionCall, *, tune: bool = True) -> tuple[Tensor, Tensor]:
    """The student's attention with values v_s (B, H, M, E), and its `cross_entropy`, in one pass.

    Arguments and errors are those of `cross_entropy`.

    Returns:
        The attention's output in the student's dtype, (B, H, N, E), and nats per query row, float32, (B, H, N).
    """
    ce, _, out = _run(s, v_s, t, entropy=False, tune=tune)
    return out, ce


def _run(s: AttentionCall, v_s: Tensor | None, t: AttentionCall, *, entropy: bool, tune: bool) -> Any:
    reason = obstacle(s, t, v_s)
    if reason:
        raise UserError(f"the Triton kernels can't compute this: {reason}")
    return _Fused.apply(s.q, s.k, v_s, t.q, t.k, s.mask, t.mask, float(s.scale), float(t.scale), entropy, tune)


class _Fused(torch.autograd.Function):
    """Cross-entropy, the teacher's entropy or `None`, the student's attention or `None`."""

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
        tune: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        batch, heads, n, m = *q_s.shape[:3], k_s.shape[2]
        masks = [None if mask is None else mask.expand(batch, heads, n, m) for mask in (mask_s, mask_t)]
        operands = [*(_readable(x) for x in (q_s, k_s, v_s, q_t, k_t)), *masks]
        ce = q_s.new_empty((batch, heads, n), dtype=torch.float32)
        own = torch.empty_like(ce) if entropy else None
        stats = q_s.new_empty((4, batch, heads, n), dtype=torch.float32)
        # Tokens before heads in memory: joining the heads afterwards copies nothing.
        out = None if v_s is None else q_s.new_empty((batch, n, heads, v_s.shape[-1])).transpose(1, 2)
        ctx.scales, ctx.tune = (scale_s, scale_t), tune
        ctx.save_for_backward(*operands, out, stats)
        common = _common(operands, ctx.scales, stats)
        launch("forward", common | {"ce": ce, "own": own} | _strided("out", out), tune)
        if own is not None:
            ctx.mark_non_differentiable(own)
        return ce, own, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, _: Tensor | None, d_out: Tensor | None) -> tuple[Tensor | None, ...]:
        *operands, out, stats = ctx.saved_tensors
        q_s, k_s, v_s = operands[:3]
        needs_q, needs_k, needs_v = ctx.needs_input_grad[:3]
        g, unit = g.float().contiguous(), None
        if v_s is None and q_s.dtype == torch.float16 and g.numel():
            unit = g.abs().amax().clamp_min(1e-30)  # nothing that is rounded to float16 is over 2^12 then
            g = g / unit
        delta = None if v_s is None else torch.empty_like(g)
        d_q, d_k, d_v = (
            torch.empty_like(x) if needed else None
            for x, needed in ((q_s, needs_q), (k_s, needs_k), (v_s, needs_v and v_s is not None))
        )
        common = _common(operands, ctx.scales, stats) | {"g": g, "delta": delta, "unit": unit}
        common |= _strided("d_out", _readable(d_out))
        if needs_q or v_s is not None:  # writes delta, which the other one reads
            launch("rows", common | _strided("out", out) | _strided("d_q", d_q), ctx.tune)
        if needs_k or needs_v:
            launch("keys", common | _strided("d_k", d_k, "m") | _strided("d_v", d_v, "m"), ctx.tune)
        return d_q, d_k, d_v, *[None] * 8


def _readable(x: Any) -> Any:
    """The same with adjacent elements in the last dimension."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _strided(name: str, x: Tensor | None, token: str = "n") -> dict[str, Any]:
    """A tensor (B, H, tokens, D) and its strides as arguments of a kernel."""
    strides = (0, 0, 0) if x is None else x.stride()[:3]
    return {name: x, **{f"{name}_{dim}": stride for dim, stride in zip(("b", "h", token), strides, strict=True)}}


def _common(operands: list[Any], scales: tuple[float, float], stats: Tensor) -> dict[str, Any]:
    """Arguments of all three kernels."""
    q_s, k_s, v_s, q_t, k_t, *masks = operands
    arguments = {
        **_strided("q_s", q_s),
        **_strided("k_s", k_s, "m"),
        **_strided("v_s", v_s, "m"),
        **_strided("q_t", q_t),
        **_strided("k_t", k_t, "m"),
    }
    for name, mask in zip(("mask_s", "mask_t"), masks, strict=True):
        arguments |= _strided(name, mask) | {f"{name}_m": 0 if mask is None else mask.stride(3)}
    for side, x in (("S", q_s), ("T", q_t), ("V", k_s if v_s is None else v_s)):
        arguments |= {f"D_{side}": x.shape[-1], f"WIDE_{side}": max(16, next_power_of_2(x.shape[-1]))}
    heads, n, m = q_s.shape[1], q_s.shape[2], k_s.shape[2]
    sizes = {"H": heads, "N": n, "M": m, "SIZE": min(4096, next_power_of_2(max(128, n, m)))}
    return arguments | sizes | {"scale_s": scales[0], "scale_t": scales[1], "stats": stats}
