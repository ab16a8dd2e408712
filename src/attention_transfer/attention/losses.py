"""Distances between a student's attention and a teacher's.

Every distance gives one value per query row, so that the caller chooses rows, heads and reduction. `impl=` chooses
how it is computed and changes nothing else; "auto" takes the best implementation for the tensors at hand, and
[`choose_impl`][attention_transfer.attention.choose_impl] tells which, and why.

Shapes: B batch, H heads, N query tokens, M key tokens, D head dimension; `_s` student, `_t` teacher.
The head dimensions and scales of the two sides may differ; B, H, N and M may not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from attention_transfer.attention import flash, fused, rows
from attention_transfer.attention.dispatch import Impl, choose
from attention_transfer.attention.operands import AttentionCall, under_autocast
from attention_transfer.attention.tiles import in_tiles
from attention_transfer.errors import UserError


class Distance:
    """A distance of two attentions, row by row. Call it with loose tensors, or `between` with two records.

    Args:
        name: what it is called.
        of_logits: the same from the logits of both sides.
    """

    def __init__(self, name: str, of_logits: rows.RowDistance) -> None:
        self.__name__ = name
        self.of_logits = of_logits

    def __call__(
        self,
        q_s: Tensor,
        k_s: Tensor,
        q_t: Tensor,
        k_t: Tensor,
        *,
        scale_s: float | None = None,
        scale_t: float | None = None,
        mask_s: Tensor | None = None,
        mask_t: Tensor | None = None,
        impl: Impl = "auto",
    ) -> Tensor:
        """The distance of the two attentions, row by row. A row of which one side masks all keys is 0.

        Args:
            q_s: student queries, (B, H, N, D_s).
            k_s: student keys, (B, H, M, D_s).
            q_t: teacher queries, (B, H, N, D_t).
            k_t: teacher keys, (B, H, M, D_t).
            scale_s: scale of the student's logits; `None` is D_s^-0.5.
            scale_t: scale of the teacher's logits; `None` is D_t^-0.5.
            mask_s: additive or boolean mask of the student's logits.
            mask_t: additive or boolean mask of the teacher's logits.
            impl: how it is computed, see [`choose_impl`][attention_transfer.attention.choose_impl]; every
                implementation gives the same values, and the same gradients of all operands and additive masks.

        Returns:
            One value per query row, (B, H, N), in float32 or wider.

        Raises:
            ValueError: batch, heads or tokens of the two sides differ.
            UserError: `impl` can't compute it for these tensors.
        """
        s, t = AttentionCall.of(q_s, k_s, scale_s, mask_s), AttentionCall.of(q_t, k_t, scale_t, mask_t)
        return self.between(s, t, impl=impl)

    def between(self, s: AttentionCall, t: AttentionCall, *, impl: Impl = "auto") -> Tensor:
        """The distance of the student's attention and the teacher's, (B, H, N); see `__call__`."""
        _check_shapes(s, t)
        s, t = _cast(s), _cast(t)
        chosen = choose(self.__name__, s, t, impl=impl).impl
        if chosen == "flash":
            cross_entropy = flash.cross_entropy(s, t)
            return cross_entropy - flash.entropy(t) if self is attention_kl else cross_entropy
        if chosen == "triton":
            from attention_transfer.attention import triton_kernels  # loads Triton

            return triton_kernels.kl(s, t) if self is attention_kl else triton_kernels.cross_entropy(s, t)
        if chosen == "reference":
            return self.of_logits(s.wide_logits(), t.wide_logits())
        return in_tiles(lambda a, b: (self.of_logits(a.wide_logits(), b.wide_logits()),), s, t)[0]


attention_cross_entropy = Distance("attention_cross_entropy", rows.cross_entropy)
"""Cross-entropy of the student's attention against the teacher's, in nats, row by row.

`CE[i] = -Σ_j P_t[i, j] · log P_s[i, j]` (Attention Distillation; Li et al. 2024, arXiv 2411.09702, section 3.2).
A key that the teacher gives no weight contributes nothing, whatever the student thinks of it.
"""

attention_kl = Distance("attention_kl", rows.kl)
"""Kullback–Leibler divergence KL(P_t ‖ P_s) of the attention maps, in nats, row by row.

The cross-entropy less the teacher's entropy: the same gradient for the student, and 0 where the maps agree; never
negative but for rounding.
"""

attention_js = Distance("attention_js", rows.js)
"""Jensen–Shannon divergence of the attention maps, in nats, row by row: symmetric, and at most ln 2."""

attention_mse = Distance("attention_mse", rows.mse)
"""Squared distance of the attention maps, row by row: `Σ_j (P_s[i, j] - P_t[i, j])²`, at most 2."""

logit_l2 = Distance("logit_l2", rows.logit_l2)
"""Squared L2 distance of the attention logits, row by row: `Σ_j (S_s[i, j] - S_t[i, j])²`.

Keys that are masked out (-inf) on both sides count as equal.
"""


def output_l2(
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    *,
    scale_s: float | None = None,
    scale_t: float | None = None,
    mask_s: Tensor | None = None,
    mask_t: Tensor | None = None,
) -> Tensor:
    """Squared L2 distance of what the heads read, row by row: `|P_s[i] V_s - P_t[i] V_t|²`.

    Matching outputs is more general than matching maps (Qin et al. 2026). Two calls of the fused attention, no map.
    Beside the values v_s and v_t, (B, H, M, D) of one width, arguments and errors are those of
    [`attention_cross_entropy`][attention_transfer.attention.attention_cross_entropy].

    Returns:
        Squared values per query row, (B, H, N).
    """
    s, t = AttentionCall.of(q_s, k_s, scale_s, mask_s, v=v_s), AttentionCall.of(q_t, k_t, scale_t, mask_t, v=v_t)
    return output_l2_between(s, t)


def output_l2_between(s: AttentionCall, t: AttentionCall) -> Tensor:
    """[`output_l2`][attention_transfer.attention.output_l2] of two records, (B, H, N)."""
    _check_shapes(s, t)
    if s.v.shape != t.v.shape:
        raise ValueError(f"values must have one shape, but are {tuple(s.v.shape)} and {tuple(t.v.shape)}")
    read_s, read_t = (F.scaled_dot_product_attention(x.q, x.k, x.v, x.mask, scale=x.scale) for x in (s, t))
    wide = torch.promote_types(read_s.dtype, torch.float32)
    return (read_s.to(wide) - read_t.to(wide)).square().sum(dim=-1)


def distilled_attention(
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    *,
    scale_s: float | None = None,
    scale_t: float | None = None,
    mask_s: Tensor | None = None,
    mask_t: Tensor | None = None,
    impl: Impl = "auto",
    reduction: Literal["none", "mean"] = "none",
) -> tuple[Tensor, Tensor]:
    """The student's attention, and its cross-entropy against the teacher's, in one.

    The student's logits are computed once for both, and their gradients meet before the products that give those of
    q and k: the loss costs one more pass of products forward and one backward, those of the teacher's logits.
    Under autocast operands are cast as those of PyTorch's attention are.

    Args:
        q_s: student queries, (B, H, N, D_s).
        k_s: student keys, (B, H, M, D_s).
        v_s: student values, (B, H, M, E).
        q_t: teacher queries, (B, H, N, D_t).
        k_t: teacher keys, (B, H, M, D_t).
        scale_s: scale of the student's logits; `None` is D_s^-0.5.
        scale_t: scale of the teacher's logits; `None` is D_t^-0.5.
        mask_s: additive or boolean mask of the student's logits.
        mask_t: additive or boolean mask of the teacher's logits.
        impl: how it is computed, see [`choose_impl`][attention_transfer.attention.choose_impl].
        reduction: "mean" over all rows keeps less between the passes, where fused kernels serve: its gradients are
            formed in the forward pass, and nothing of the teacher is kept.

    Returns:
        The attention's output in the dtype of the values, (B, H, N, E), and the cross-entropy in nats, float32 or
        wider: per query row, (B, H, N), or a scalar.

    Raises:
        ValueError: batch, heads or tokens of the two sides differ.
        UserError: `impl` can't compute it for these tensors.
    """
    operands = (q_s, k_s, v_s, q_t, k_t)
    if has_torch_function(operands):  # a mode, or a subclass of tensors, sees one call
        options: Any = {"scale_s": scale_s, "scale_t": scale_t, "mask_s": mask_s, "mask_t": mask_t, "impl": impl}
        return handle_torch_function(distilled_attention, operands, *operands, **options, reduction=reduction)
    if reduction not in ("none", "mean"):
        raise UserError(f'there is no reduction={reduction!r}; choose "none" or "mean"')
    s, t = AttentionCall.of(q_s, k_s, scale_s, mask_s, v=v_s), AttentionCall.of(q_t, k_t, scale_t, mask_t)
    return distilled(s, t, impl=impl, mean=reduction == "mean")


def distilled(s: AttentionCall, t: AttentionCall, *, impl: Impl = "auto", mean: bool = False) -> tuple[Tensor, Tensor]:
    """[`distilled_attention`][attention_transfer.attention.distilled_attention] of two records."""
    _check_shapes(s, t)
    s, t = _cast(s, values=True), _cast(t)
    chosen = choose("distilled_attention", s, t, values=True, impl=impl).impl
    if chosen == "flash":
        return flash.distilled(s, t, mean=mean)
    if chosen == "triton":
        from attention_transfer.attention import triton_kernels

        out, rows_BHN = triton_kernels.distilled(s, s.v, t)
    elif chosen == "reference":
        out, rows_BHN = _distilled_by_maps(s, t)
    else:
        out, rows_BHN = in_tiles(_distilled_by_maps, s, t)
    return out, rows_BHN.mean() if mean else rows_BHN


def _distilled_by_maps(s: AttentionCall, t: AttentionCall) -> tuple[Tensor, Tensor]:
    logits = s.wide_logits()
    return rows.softmax(logits).to(s.v.dtype) @ s.v, rows.cross_entropy(logits, t.wide_logits())


def frozen_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Attention by queries and keys that are constants, as in Attention Copy: only the values get a gradient.

    Without a mask its backward pass is one attention call, less than half of what an attention's own would do.

    Args:
        q: queries, (B, H, N, D), without gradient.
        k: keys, (B, H, M, D), without gradient.
        v: values, (B, H, M, E).
        scale: factor on q·kᵀ; `None` is D^-0.5.
        mask: additive or boolean mask without gradient, broadcastable to (B, H, N, M).

    Returns:
        (B, H, N, E).
    """
    if has_torch_function((q, k, v)):
        attended: Tensor = handle_torch_function(frozen_attention, (q, k, v), q, k, v, scale=scale, mask=mask)
        return attended
    q, k, v = under_autocast(q, k, v)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    # On CUDA the fused form waits until a GPU has shown that it is right, and faster.
    plain = q.device.type == "cpu" and mask is None and factor and q.dtype == k.dtype == v.dtype
    if plain and fused.obstacle(q, k) is None:
        return flash.attend_frozen(q, k, v, scale=factor)
    if mask is not None and mask.dim() < 2:  # PyTorch's attention wants two dimensions
        mask = mask.expand(1, k.shape[-2])
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def _cast(call: AttentionCall, *, values: bool = False) -> AttentionCall:
    """The operands that are read, in autocast's dtype where it is on."""
    q, k, *v = under_autocast(call.q, call.k, *([call.v] if values else []))
    return replace(call, q=q, k=k, v=v[0] if values else call.v)


def _check_shapes(s: AttentionCall, t: AttentionCall) -> None:
    if s.q.shape[:-1] != t.q.shape[:-1] or s.k.shape[:-1] != t.k.shape[:-1]:
        raise ValueError(
            f"student and teacher must share batch, heads and tokens, but q is {tuple(s.q.shape)} against "
            f"{tuple(t.q.shape)} and k is {tuple(s.k.shape)} against {tuple(t.k.shape)} (student against teacher)"
        )
