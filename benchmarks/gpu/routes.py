"""The implementations of the losses, as the library names them at run time."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention_transfer.attention import (
    AttentionCall,
    attention_cross_entropy,
    attention_kl,
    choose_impl,
    distilled_attention,
)

Rows = Callable[[AttentionCall, AttentionCall], Tensor]
Both = Callable[[AttentionCall, Tensor, AttentionCall], tuple[Tensor, Tensor]]


class Functions(NamedTuple):
    """The losses by one route."""

    cross_entropy: Rows
    kl: Rows
    distilled: Both
    distilled_mean: Both


def functions(route: str) -> Functions:
    """The losses by one route."""
    return Functions(
        partial(_rows, attention_cross_entropy, route),
        partial(_rows, attention_kl, route),
        partial(_distilled, route, "none"),
        partial(_distilled, route, "mean"),
    )


def check(route: str, loss: str, s: AttentionCall, t: AttentionCall, v: Tensor) -> None:
    """Raise a `UserError` where a route can't compute a loss of these tensors."""
    values = v if loss == "distilled_attention" else None
    choose_impl(loss, s.q, s.k, t.q, t.k, v_s=values, impl=route, **_options(s, t))  # type: ignore[arg-type] # a name


def _rows(loss: Any, route: str, s: AttentionCall, t: AttentionCall) -> Tensor:
    nats: Tensor = loss(s.q, s.k, t.q, t.k, impl=route, **_options(s, t))
    return nats


def _distilled(route: str, reduction: Any, s: AttentionCall, v: Tensor, t: AttentionCall) -> tuple[Tensor, Tensor]:
    impl: Any = route
    return distilled_attention(s.q, s.k, v, t.q, t.k, impl=impl, reduction=reduction, **_options(s, t))


def _options(s: AttentionCall, t: AttentionCall) -> dict[str, Any]:
    return {"scale_s": s.scale, "scale_t": t.scale, "mask_s": s.mask, "mask_t": t.mask}


class Size(NamedTuple):
    """Of operands: N query tokens, M keys, head dimensions of student, teacher and values; one image."""

    n: int
    m: int
    d_s: int = 64
    d_t: int = 64
    d_v: int = 64
    heads: int = 2

    def __str__(self) -> str:
        return f"{self.n}x{self.m}, heads of {self.d_s}/{self.d_t}/{self.d_v}"


def operands(
    size: Size, dtype: torch.dtype, device: str, mask: str = "none"
) -> tuple[AttentionCall, Tensor, AttentionCall]:
    """Random sides and values, tokens before heads in memory as in a model; the student's require gradients.

    Args:
        size: of all of them.
        dtype: of all of them.
        device: where they are.
        mask: "none"; "bool", one for both sides; "bias", an additive one for the student, with keys that are masked
            and one dead row, and the student's masked keys for the teacher.
    """

    def draw(tokens: int, width: int) -> Tensor:
        return torch.randn(1, tokens, size.heads, width, device=device).to(dtype).transpose(1, 2)

    q, k, v = (draw(n, d).requires_grad_() for n, d in ((size.n, size.d_s), (size.m, size.d_s), (size.m, size.d_v)))
    q_t, k_t = draw(size.n, size.d_t), draw(size.m, size.d_t)
    mask_s = mask_t = None
    if mask != "none":
        taken = torch.rand(size.n, size.m, device=device) > 0.1
        taken[:, 0] = True
        mask_s = mask_t = taken[None]
        if mask == "bias":
            mask_s = torch.randn(size.heads, size.n, size.m, device=device).masked_fill(~taken, -math.inf)
            mask_s[:, size.n // 2] = -math.inf
    return AttentionCall.of(q, k, None, mask_s), v, AttentionCall.of(q_t, k_t, None, mask_t)
