"""Distances between a student's attention and a teacher's.

Every function returns one value per query row, so that the caller chooses rows, heads and reduction. `impl=` chooses
how it is computed and changes nothing else; "auto" takes the best way for the tensors at hand, and
[`choose_impl`][attention_transfer.attention.choose_impl] tells which, and why.

Shapes: B batch, H heads, N query tokens, M key tokens, D head dimension; `_s` student, `_t` teacher.
The head dimensions and scales of the two sides may differ; B, H, N and M may not.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from attention_transfer.attention import flash, fused, rows, triton_kernels
from attention_transfer.attention.dispatch import Impl, choose_impl
from attention_transfer.attention.maps import under_autocast
from attention_transfer.attention.tiles import Side, in_tiles
from attention_transfer.errors import UserError


def attention_cross_entropy(
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
    """Cross-entropy of the student's attention against the teacher's, row by row.

    `CE[i] = -Σ_j P_t[i, j] · log P_s[i, j]` (Attention Distillation; Li et al. 2024, arXiv 2411.09702, section 3.2).
    A key that the teacher gives no weight contributes nothing, whatever the student thinks of it. A row of which one
    side masks all keys is 0.

    Args:
        q_s: student queries, (B, H, N, D_s).
        k_s: student keys, (B, H, M, D_s).
        q_t: teacher queries, (B, H, N, D_t).
        k_t: teacher keys, (B, H, M, D_t).
        scale_s: scale of the student's logits; `None` is D_s^-0.5.
        scale_t: scale of the teacher's logits; `None` is D_t^-0.5.
        mask_s: additive or boolean mask of the student's logits.
        mask_t: additive or boolean mask of the teacher's logits.
        impl: how it is computed, see [`choose_impl`][attention_transfer.attention.choose_impl]; every way gives the
            same values, and the same gradients of all operands and additive masks.

    Returns:
        Nats per query row, (B, H, N), in float32 or wider.

    Raises:
        ValueError: batch, heads or tokens of the two sides differ.
        UserError: `impl` can't compute it for these tensors.
    """
    return _rows("attention_cross_entropy", Side(q_s, k_s, scale_s, mask_s), Side(q_t, k_t, scale_t, mask_t), impl)


def attention_kl(
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
    """Kullback–Leibler divergence KL(P_t ‖ P_s) of the attention maps, row by row.

    The cross-entropy less the teacher's entropy: the same gradient for the student, and 0 where the maps agree.
    Arguments and errors are those of
    [`attention_cross_entropy`][attention_transfer.attention.attention_cross_entropy].

    Returns:
        Nats per query row, (B, H, N), never negative but for rounding.
    """
    return _rows("attention_kl", Side(q_s, k_s, scale_s, mask_s), Side(q_t, k_t, scale_t, mask_t), impl)


def attention_js(
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
    """Jensen–Shannon divergence of the attention maps, row by row: symmetric, and at most ln 2.

    Arguments and errors are those of
    [`attention_cross_entropy`][attention_transfer.attention.attention_cross_entropy].

    Returns:
        Nats per query row, (B, H, N).
    """
    return _rows("attention_js", Side(q_s, k_s, scale_s, mask_s), Side(q_t, k_t, scale_t, mask_t), impl)


def attention_mse(
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
    """Squared distance of the attention maps, row by row: `Σ_j (P_s[i, j] - P_t[i, j])²`.

    Arguments and errors are those of
    [`attention_cross_entropy`][attention_transfer.attention.attention_cross_entropy].

    Returns:
        Squared probabilities per query row, (B, H, N), at most 2.
    """
    return _rows("attention_mse", Side(q_s, k_s, scale_s, mask_s), Side(q_t, k_t, scale_t, mask_t), impl)


def attention_cosine(
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
    """Cosine distance of the attention maps, row by row: `1 - ⟨P_s[i], P_t[i]⟩ / (|P_s[i]| · |P_t[i]|)`.

    Arguments and errors are those of
    [`attention_cross_entropy`][attention_transfer.attention.attention_cross_entropy].

    Returns:
        From 0 to 1 per query row, (B, H, N).
    """
    return _rows("attention_cosine", Side(q_s, k_s, scale_s, mask_s), Side(q_t, k_t, scale_t, mask_t), impl)


def logit_l2(
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
    """Squared L2 distance of the attention logits, row by row: `Σ_j (S_s[i, j] - S_t[i, j])²`.

    Keys that are masked out (-inf) on both sides count as equal.
    Arguments and errors are those of
    [`attention_cross_entropy`][attention_transfer.attention.attention_cross_entropy].

    Returns:
        Squared logits per query row, (B, H, N).
    """
    return _rows("logit_l2", Side(q_s, k_s, scale_s, mask_s), Side(q_t, k_t, scale_t, mask_t), impl)


def class_logit_l2(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    *,
    scale_s: float | None = None,
    scale_t: float | None = None,
    mask_s: Tensor | None = None,
    mask_t: Tensor | None = None,
) -> Tensor:
    """Squared L2 distance of the class token's attention logits, the term of GTA (Seo et al. 2024, arXiv 2401.02656).

    Only the class token's row is computed: O(M·D), next to nothing beside the block itself.
    Arguments and errors are those of
    [`attention_cross_entropy`][attention_transfer.attention.attention_cross_entropy].

    Returns:
        Squared logits per head, summed over keys, (B, H).
    """
    _check_shapes(q_s, k_s, q_t, k_t)
    s, t = _cast(Side(q_s, k_s, scale_s, mask_s)), _cast(Side(q_t, k_t, scale_t, mask_t))
    return rows.logit_l2(s.rows(0, 1).logits(), t.rows(0, 1).logits()).squeeze(-1)


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
    _check_shapes(q_s, k_s, q_t, k_t)
    if v_s.shape != v_t.shape:
        raise ValueError(f"values must have one shape, but are {tuple(v_s.shape)} and {tuple(v_t.shape)}")
    read_s = F.scaled_dot_product_attention(q_s, k_s, v_s, mask_s, scale=scale_s)
    read_t = F.scaled_dot_product_attention(q_t, k_t, v_t, mask_t, scale=scale_t)
    wide = torch.promote_types(read_s.dtype, torch.float32)
    return (read_s.to(wide) - read_t.to(wide)).square().sum(dim=-1)


_KERNELS = {"flash": flash.FUSED, "flex": flash.FLEX}
_DISTANCES: dict[str, rows.RowDistance] = {
    "attention_cross_entropy": rows.cross_entropy,
    "attention_kl": rows.kl,
    "attention_js": rows.js,
    "attention_mse": rows.mse,
    "attention_cosine": rows.cosine,
    "logit_l2": rows.logit_l2,
}


def _rows(name: str, s: Side, t: Side, impl: Impl) -> Tensor:
    _check_shapes(s.q, s.k, t.q, t.k)
    s, t = _cast(s), _cast(t)
    way = _chosen(name, s, t, None, impl)
    if way in _KERNELS:
        kernels = _KERNELS[way]
        cross_entropy = flash.cross_entropy(s, t, kernels=kernels)
        return cross_entropy - flash.entropy(t, kernels=kernels) if name == "attention_kl" else cross_entropy
    if way == "triton":
        return triton_kernels.kl(s, t) if name == "attention_kl" else triton_kernels.cross_entropy(s, t)
    distance = _DISTANCES[name]
    if way == "reference":
        return distance(s.logits(), t.logits())
    return in_tiles(lambda a, b: (distance(a.logits(), b.logits()),), s, t)[0]


def _chosen(name: str, s: Side, t: Side, v_s: Tensor | None, impl: Impl) -> str:
    masks = {"mask_s": s.mask, "mask_t": t.mask}
    return choose_impl(name, s.q, s.k, t.q, t.k, v_s=v_s, scale_s=s.scale, scale_t=t.scale, impl=impl, **masks).impl


def _cast(side: Side) -> Side:
    q, k = under_autocast(side.q, side.k)
    return Side(q, k, side.scale, side.mask)


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
    options: Any = {"scale_s": scale_s, "scale_t": scale_t, "mask_s": mask_s, "mask_t": mask_t, "impl": impl}
    if _someone_stands_here(operands):  # whoever stands at attention calls sees this one too
        return handle_torch_function(distilled_attention, operands, *operands, **options, reduction=reduction)
    if reduction not in ("none", "mean"):
        raise UserError(f'there is no reduction={reduction!r}; choose "none" or "mean"')
    _check_shapes(q_s, k_s, q_t, k_t)
    q_s, k_s, v_s, q_t, k_t = under_autocast(*operands)
    s, t = Side(q_s, k_s, scale_s, mask_s), Side(q_t, k_t, scale_t, mask_t)
    way = _chosen("distilled_attention", s, t, v_s, impl)
    if way in _KERNELS:
        return flash.distilled(s, v_s, t, mean=reduction == "mean", kernels=_KERNELS[way])
    if way == "triton":
        out, rows_BHN = triton_kernels.distilled(s, v_s, t)
    elif way == "reference":
        out, rows_BHN = _distilled_by_maps(v_s, s, t)
    else:
        out, rows_BHN = in_tiles(partial(_distilled_by_maps, v_s), s, t)
    return out, rows_BHN.mean() if reduction == "mean" else rows_BHN


def _distilled_by_maps(v_s: Tensor, s: Side, t: Side) -> tuple[Tensor, Tensor]:
    logits = s.logits()
    return rows.softmax(logits).to(v_s.dtype) @ v_s, rows.cross_entropy(logits, t.logits())


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
    if _someone_stands_here((q, k, v)):
        options: Any = {"scale": scale, "mask": mask}
        return handle_torch_function(frozen_attention, (q, k, v), q, k, v, **options)
    q, k, v = under_autocast(q, k, v)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    # On CUDA the fused form waits until a GPU has shown that it is right, and faster.
    plain = q.device.type == "cpu" and mask is None and factor and q.dtype == k.dtype == v.dtype
    if plain and fused.obstacle(q, k) is None:
        return flash.attend_frozen(q, k, v, scale=factor)
    if mask is not None and mask.dim() < 2:  # PyTorch's attention wants two dimensions
        mask = mask.expand(1, k.shape[-2])
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def _someone_stands_here(operands: tuple[Tensor, ...]) -> bool:
    # While a graph is traced, the first does not count modes.
    return has_torch_function(operands) or torch._C._is_torch_function_mode_enabled()


def _check_shapes(q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor) -> None:
    if q_s.shape[:-1] != q_t.shape[:-1] or k_s.shape[:-1] != k_t.shape[:-1]:
        raise ValueError(
            f"student and teacher must share batch, heads and tokens, but q is {tuple(q_s.shape)} against "
            f"{tuple(q_t.shape)} and k is {tuple(k_s.shape)} against {tuple(k_t.shape)} (student against teacher)"
        )
