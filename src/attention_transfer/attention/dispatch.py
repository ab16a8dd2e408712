"""Which way a loss is computed, and why.

- "reference" forms the maps: readable, any dtype, any device.
- "chunked" forms a tile of rows at a time and forms it again in the backward pass: any device, any mask, O(tile · M).
- "flash" uses PyTorch's fused kernels on the CPU (see `flash.py`): no map is formed; cross-entropy and KL divergence,
  without masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from attention_transfer.errors import UserError

Impl = Literal["auto", "reference", "chunked", "flash"]
_SMALL = 1 << 22  # elements of a map that is formed without a thought: 16 MiB in float32
_FUSED = ("attention_cross_entropy", "attention_kl", "distilled_attention")


@dataclass(frozen=True)
class Choice:
    """An implementation and the reason for it.

    Attributes:
        impl: "reference", "chunked" or "flash".
        reason: half a sentence.
    """

    impl: str
    reason: str


def choose_impl(
    loss: str,
    q_s: Tensor,
    k_s: Tensor,
    *,
    mask_s: Tensor | None = None,
    mask_t: Tensor | None = None,
    impl: Impl = "auto",
) -> Choice:
    """The implementation that a loss will use for these tensors.

    Args:
        loss: name of the function, e.g. "attention_cross_entropy".
        q_s: student queries, (B, H, N, D).
        k_s: student keys, (B, H, M, D).
        mask_s: mask of the student's logits.
        mask_t: mask of the teacher's logits.
        impl: what was asked for; anything but "auto" is checked and taken.

    Raises:
        UserError: what was asked for cannot serve these tensors, with the reason.
    """
    obstacle = _no_flash(loss, q_s, mask_s, mask_t)
    if impl == "flash" and obstacle:
        raise UserError(f'impl="flash" can\'t compute {loss} here: {obstacle}; choose impl="chunked"')
    if impl != "auto":
        return Choice(impl, "asked for")
    if obstacle is None:
        return Choice("flash", "fused kernels of the CPU serve it")
    size = q_s.shape[0] * q_s.shape[1] * q_s.shape[2] * k_s.shape[2]
    if size <= _SMALL:
        return Choice("reference", f"{obstacle}, and the maps are small")
    return Choice("chunked", obstacle)


def _no_flash(loss: str, q_s: Tensor, mask_s: Tensor | None, mask_t: Tensor | None) -> str | None:
    """Why the fused CPU kernels can't be used, or `None`."""
    if loss not in _FUSED:
        return "this distance has no fused form"
    if q_s.device.type != "cpu":
        return f"the fused form is for the CPU, not {q_s.device.type}"
    if mask_s is not None or mask_t is not None:
        return "there is a mask or bias"
    return None
