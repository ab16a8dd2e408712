"""Distances between a student's attention and a teacher's.

Every function returns one value per query row, so that the caller chooses rows, heads and reduction.
These are the plain versions, which form the maps: easy to read, any dtype, any device.

Shapes: B batch, H heads, N query tokens, M key tokens, D head dimension; `_s` student, `_t` teacher.
The head dimensions and scales of the two sides may differ; B, H, N and M may not.
"""

from __future__ import annotations

from torch import Tensor

from attention_transfer.attention.maps import attention_logits, class_logits


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
) -> Tensor:
    """Cross-entropy of the student's attention against the teacher's, row by row.

    `CE[i] = -Σ_j P_t[i, j] · log P_s[i, j]` (Attention Distillation; Li et al. 2024, arXiv 2411.09702, section 3.2).
    A key that the teacher gives no weight contributes nothing, whatever the student thinks of it.

    Args:
        q_s: student queries, (B, H, N, D_s).
        k_s: student keys, (B, H, M, D_s).
        q_t: teacher queries, (B, H, N, D_t).
        k_t: teacher keys, (B, H, M, D_t).
        scale_s: scale of the student's logits; `None` is D_s^-0.5.
        scale_t: scale of the teacher's logits; `None` is D_t^-0.5.
        mask_s: additive or boolean mask of the student's logits.
        mask_t: additive or boolean mask of the teacher's logits.

    Returns:
        Nats per query row, (B, H, N).

    Raises:
        ValueError: batch, heads or tokens of the two sides differ.
    """
    _check_shapes(q_s, k_s, q_t, k_t)
    log_p_s = attention_logits(q_s, k_s, scale=scale_s, mask=mask_s).log_softmax(dim=-1)
    p_t = attention_logits(q_t, k_t, scale=scale_t, mask=mask_t).softmax(dim=-1)
    return _expected(p_t, log_p_s).neg()


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
) -> Tensor:
    """Kullback–Leibler divergence KL(P_t ‖ P_s) of the attention maps, row by row.

    The cross-entropy less the teacher's entropy: the same gradient for the student, and 0 where the maps agree.
    Arguments and errors are those of
    [`attention_cross_entropy`][attention_transfer.attention.attention_cross_entropy].

    Returns:
        Nats per query row, (B, H, N), never negative but for rounding.
    """
    _check_shapes(q_s, k_s, q_t, k_t)
    log_p_s = attention_logits(q_s, k_s, scale=scale_s, mask=mask_s).log_softmax(dim=-1)
    log_p_t = attention_logits(q_t, k_t, scale=scale_t, mask=mask_t).log_softmax(dim=-1)
    p_t = log_p_t.exp()
    return _expected(p_t, log_p_t) - _expected(p_t, log_p_s)


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
) -> Tensor:
    """Squared L2 distance of the attention logits, row by row: `Σ_j (S_s[i, j] - S_t[i, j])²`.

    Arguments and errors are those of
    [`attention_cross_entropy`][attention_transfer.attention.attention_cross_entropy].
    Keys that are masked out (-inf) on both sides count as equal.

    Returns:
        Squared logits per query row, (B, H, N).
    """
    _check_shapes(q_s, k_s, q_t, k_t)
    logits_s = attention_logits(q_s, k_s, scale=scale_s, mask=mask_s)
    logits_t = attention_logits(q_t, k_t, scale=scale_t, mask=mask_t)
    return _squared_distance(logits_s, logits_t)


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
    row_s = class_logits(q_s, k_s, scale=scale_s, mask=mask_s)
    row_t = class_logits(q_t, k_t, scale=scale_t, mask=mask_t)
    return _squared_distance(row_s, row_t)


def _expected(p: Tensor, log_q: Tensor) -> Tensor:
    """Σ_j p_j · log q_j over the last dimension, with 0 · (-inf) = 0."""
    return (p * log_q.masked_fill(p == 0, 0.0)).sum(dim=-1)


def _squared_distance(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """Σ_j (s_j - t_j)² over the last dimension, with (-inf) - (-inf) = 0."""
    both_masked = logits_s.isneginf() & logits_t.isneginf()
    # Both operands are filled, not their difference: the gradient of inf - inf would be NaN.
    difference = logits_s.masked_fill(both_masked, 0.0) - logits_t.masked_fill(both_masked, 0.0)
    return difference.square().sum(dim=-1)


def _check_shapes(q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor) -> None:
    if q_s.shape[:-1] != q_t.shape[:-1] or k_s.shape[:-1] != k_t.shape[:-1]:
        raise ValueError(
            f"student and teacher must share batch, heads and tokens, but q is {tuple(q_s.shape)} against "
            f"{tuple(q_t.shape)} and k is {tuple(k_s.shape)} against {tuple(k_t.shape)} (student against teacher)"
        )
