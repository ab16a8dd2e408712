"""Which implementation computes a loss, and why.

- "reference" forms the maps: readable, any dtype, any device.
- "chunked" forms a tile of rows at a time and forms it again in the backward pass: any device, any mask, O(tile · M).
- "flash" uses PyTorch's fused attention (see `flash.py`) on the CPU and on CUDA: no map is formed; cross-entropy and KL
  divergence, without masks.
- "triton" uses our own fused kernels on a GPU (see `triton_kernels.py`): no map is formed; cross-entropy and KL
  divergence, with masks and biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from attention_transfer.attention import fused
from attention_transfer.attention.operands import AttentionCall
from attention_transfer.errors import UserError, nearest

Impl = Literal["auto", "reference", "chunked", "flash", "triton"]
_SMALL = 1 << 22  # elements of a map that is formed without a thought: 16 MiB in float32
FUSED_IMPLS = ("flash", "triton")  # those that give attention and its loss in one, and form no map
_FUSED = ("attention_cross_entropy", "attention_kl", "distilled_attention")


@dataclass(frozen=True)
class Choice:
    """An implementation and the reason for it.

    Attributes:
        impl: "reference", "chunked", "flash" or "triton".
        reason: half a sentence.
    """

    impl: str
    reason: str

    def __str__(self) -> str:
        return f"{self.impl} ({self.reason})"


def choose_impl(
    loss: str,
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor | None = None,
    k_t: Tensor | None = None,
    *,
    v_s: Tensor | None = None,
    scale_s: float | None = None,
    scale_t: float | None = None,
    mask_s: Tensor | None = None,
    mask_t: Tensor | None = None,
    impl: Impl = "auto",
) -> Choice:
    """The implementation that a loss will use for these tensors.

    On CUDA "auto" takes "triton" where it serves, once a small case of such operands has come out right on the GPU at
    hand; else "flash". On the CPU it takes "flash".

    Args:
        loss: name of the function, e.g. "attention_cross_entropy".
        q_s: student queries, (B, H, N, D).
        k_s: student keys, (B, H, M, D).
        q_t: teacher queries; `None` is some like the student's, without gradient.
        k_t: teacher keys; likewise.
        v_s: student values, where attention is computed too.
        scale_s: scale of the student's logits.
        scale_t: scale of the teacher's logits.
        mask_s: mask of the student's logits.
        mask_t: mask of the teacher's logits.
        impl: what was asked for; anything but "auto" is checked and taken.

    Raises:
        UserError: there is no such implementation, or it cannot serve these tensors, with the reason.
    """
    s = AttentionCall.of(q_s, k_s, scale_s, mask_s, v=v_s)
    t = AttentionCall.of(q_s.detach() if q_t is None else q_t, k_s.detach() if k_t is None else k_t, scale_t, mask_t)
    return choose(loss, s, t, values=v_s is not None, impl=impl)


def choose(loss: str, s: AttentionCall, t: AttentionCall, *, values: bool = False, impl: Impl = "auto") -> Choice:
    """[`choose_impl`][attention_transfer.attention.choose_impl] for two records, of which values may be read."""
    if impl not in get_args(Impl):
        raise UserError(f"there is no impl={impl!r}; {nearest(impl, get_args(Impl))}")
    v_s = s.v if values else None
    if impl in FUSED_IMPLS:
        obstacle = _obstacle(impl, loss, s, t, v_s)
        if obstacle:
            raise UserError(f'impl="{impl}" can\'t compute {loss} here: {obstacle}; choose impl="chunked"')
    if impl != "auto":
        return Choice(impl, "asked for")
    why = ""
    if s.q.is_cuda and loss in _FUSED:
        problem = _obstacle("triton", loss, s, t, v_s) or _wrong_on_this_gpu(loss, s, t)
        if problem is None:
            return Choice("triton", "the fastest on an H100, and right in a test on this GPU")
        why = f"; not by triton: {problem}"
    obstacle = _obstacle("flash", loss, s, t, v_s)
    if obstacle is None:
        return Choice("flash", f"PyTorch's fused kernels serve it on {s.q.device.type.upper()}{why}")
    size = s.q.shape[0] * s.q.shape[1] * s.q.shape[2] * s.k.shape[2]
    if size <= _SMALL:
        return Choice("reference", f"{obstacle}, and the maps are small{why}")
    return Choice("chunked", f"{obstacle}{why}")


def _obstacle(impl: str, loss: str, s: AttentionCall, t: AttentionCall, v_s: Tensor | None) -> str | None:
    """Why a fused implementation can't be used, or `None`."""
    if loss not in _FUSED:
        return "this distance has no fused form"
    if impl == "triton":
        from attention_transfer.attention import triton_kernels  # loads Triton

        return triton_kernels.available() or triton_kernels.obstacle(s, t, v_s)
    if s.mask is not None or t.mask is not None:
        return "there is a mask or bias"
    if 0 in (s.scale, t.scale):
        return "a scale is 0"
    return fused.obstacle(s.q, s.k) or fused.obstacle(t.q, t.k)


def _wrong_on_this_gpu(loss: str, s: AttentionCall, t: AttentionCall) -> str | None:
    from attention_transfer.attention import triton_check  # loads Triton, which is there by now

    return triton_check.problem(loss, s, t)
