"""Whether this GPU computes the Triton kernels right: asked once for each kind of operands, before "auto" takes them.

A kernel is compiled anew on every machine, by whatever compiler is there. So a small case of random operands is held
against formed maps in float64, forward and backward, with the tiles that the real one will have.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention_transfer.attention import losses
from attention_transfer.attention.dispatch import Impl
from attention_transfer.attention.operands import AttentionCall

LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Largest ‖found - exact‖ / ‖exact‖ of a result, by the student's dtype."""

_TOKENS, _KEYS = 83, 150


class Kind(NamedTuple):
    """What kernels are compiled for.

    Attributes:
        loss: name of the function.
        device: where.
        dtype_s: of the student's operands.
        dtype_t: of the teacher's.
        mask_s: dtype of the student's mask; `None` without one.
        mask_t: of the teacher's.
        d_s: head dimension of the student.
        d_t: of the teacher.
        d_v: of the values.
    """

    loss: str
    device: torch.device
    dtype_s: torch.dtype
    dtype_t: torch.dtype
    mask_s: torch.dtype | None
    mask_t: torch.dtype | None
    d_s: int
    d_t: int
    d_v: int


def problem(loss: str, s: AttentionCall, t: AttentionCall) -> str | None:
    """Half a sentence that says how the kernels go wrong for such operands here, or `None`."""
    masks = [None if call.mask is None else call.mask.dtype for call in (s, t)]
    widths = [len(range(x.shape[-1])) for x in (s.q, t.q, s.v)]  # numbers, also where a graph has symbols for sizes
    found: str | None = _asked_once(loss, s.q.device, s.q.dtype, t.q.dtype, *masks, *widths)
    return found


@cache
def problem_of(kind: Kind) -> str | None:
    """See `problem`."""
    import triton  # not on every system, where nobody asks either

    try:
        errors = errors_of(kind)
    except triton.TritonError as failure:
        return f"the Triton kernels fail on this GPU ({type(failure).__name__}: {str(failure).strip().splitlines()[0]})"
    limit = LIMITS[kind.dtype_s]
    wrong = [f"{name} is off by {error:.1e}" for name, error in errors.items() if not error <= limit]
    return f"the Triton kernels are wrong on this GPU ({'; '.join(wrong)}; {limit} is rounding)" if wrong else None


def _ask(*kind: Any) -> str | None:
    return problem_of(Kind(*kind))


# Where a model is traced, the case runs outside of its graph.
_asked_once: Any = torch.compiler.assume_constant_result(_ask)


def errors_of(kind: Kind) -> dict[str, float]:
    """‖found - exact‖ / ‖exact‖ of all results of a small case; NaN where one is."""
    with torch.inference_mode(mode=False), torch.enable_grad(), torch.autocast(kind.device.type, enabled=False):
        s, t, *arriving = _case(kind)
        found = _results(kind.loss, s, t, arriving, "triton")
        exact = _results(kind.loss, _doubled(s), _doubled(t), arriving, "reference")
        return {
            name: float((value.double() - exact[name]).norm() / exact[name].norm()) for name, value in found.items()
        }


def _case(kind: Kind) -> tuple[AttentionCall, AttentionCall, Tensor, Tensor]:
    """Both sides, and what arrives at the attention and at the loss; PyTorch's own generator is left alone."""
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, width: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(1, 2, rows, width, generator=generator).to(kind.device, dtype)

    def mask(dtype: torch.dtype | None) -> Tensor | None:
        return taken if dtype == torch.bool else None if dtype is None else draw(_TOKENS, _KEYS, dtype)

    taken = draw(_TOKENS, _KEYS, torch.float32) > -1
    if kind.mask_t != torch.bool:  # a key that only the student masks costs infinity
        taken = torch.ones_like(taken)
    q, k, v = (
        draw(_TOKENS, kind.d_s, kind.dtype_s),
        draw(_KEYS, kind.d_s, kind.dtype_s),
        draw(_KEYS, kind.d_v, kind.dtype_s),
    )
    for x in (q, k, v):
        x.requires_grad_()
    s = AttentionCall.of(q, k, None, mask(kind.mask_s), v=v)
    q_t, k_t = draw(_TOKENS, kind.d_t, kind.dtype_t), draw(_KEYS, kind.d_t, kind.dtype_t)
    t = AttentionCall.of(q_t, k_t, None, mask(kind.mask_t))
    return s, t, draw(_TOKENS, kind.d_v, kind.dtype_s), draw(_TOKENS, 1, torch.float32)[..., 0]


def _doubled(call: AttentionCall) -> AttentionCall:
    q, k, v = (x.detach().double().requires_grad_(x.requires_grad) for x in (call.q, call.k, call.v))
    mask = call.mask if call.mask is None or call.mask.dtype == torch.bool else call.mask.double()
    return AttentionCall.of(q, k, call.scale, mask, v=v)


def _results(loss: str, s: AttentionCall, t: AttentionCall, arriving: list[Tensor], impl: Impl) -> dict[str, Tensor]:
    """The loss, the attention where it is computed too, and the gradients of what they are made of."""
    if loss == "distilled_attention":
        attention, nats = losses.distilled(s, t, impl=impl)
        found, learning = {"the attention": attention, "the loss": nats}, {"q": s.q, "k": s.k, "v": s.v}
    else:
        distance: losses.Distance = getattr(losses, loss)
        found, learning = {"the loss": distance.between(s, t, impl=impl)}, {"q": s.q, "k": s.k}
        arriving = arriving[1:]
    d_found = [d.to(x.dtype) for d, x in zip(arriving, found.values(), strict=True)]
    gradients = torch.autograd.grad(list(found.values()), list(learning.values()), d_found)
    named = {f"the gradient of {name}": x for name, x in zip(learning, gradients, strict=True)}
    return {name: x.detach() for name, x in found.items()} | named
