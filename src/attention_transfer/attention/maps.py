"""Attention logits and maps from queries and keys.

Shapes: B batch, H heads, N query tokens, M key tokens, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention_logits(
    q_BHND: Tensor, k_BHMD: Tensor, *, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Attention logits `scale * q kᵀ + mask`, the input of the softmax.

    Args:
        q_BHND: queries, (B, H, N, D), any floating dtype.
        k_BHMD: keys, (B, H, M, D).
        scale: factor on the inner products; `None` is D^-0.5, the default of
            `torch.nn.functional.scaled_dot_product_attention`.
        mask: additive (floating) or boolean (`True` takes part), broadcastable to (B, H, N, M).

    Returns:
        Logits, (B, H, N, M), in the dtype of `q_BHND`.
    """
    factor = q_BHND.shape[-1] ** -0.5 if scale is None else scale
    logits_BHNM = (q_BHND * factor) @ k_BHMD.transpose(-2, -1)
    if mask is None:
        return logits_BHNM
    if mask.dtype == torch.bool:
        return logits_BHNM.masked_fill(~mask, float("-inf"))
    return logits_BHNM + mask


def attention_maps(q_BHND: Tensor, k_BHMD: Tensor, *, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
    """Attention maps: the softmax of [`attention_logits`][attention_transfer.attention.attention_logits] over keys.

    Returns:
        Rows that sum to one, (B, H, N, M).
    """
    return attention_logits(q_BHND, k_BHMD, scale=scale, mask=mask).softmax(dim=-1)


def class_logits(q_BHND: Tensor, k_BHMD: Tensor, *, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
    """The class token's row of the attention logits, at O(M·D) instead of O(N·M·D).

    The class token is token 0, as in every ViT of timm and Hugging Face that has one.

    Returns:
        Logits of the class token's query against all keys, (B, H, M).
    """
    row_mask = mask[..., :1, :] if mask is not None and mask.dim() > 1 and mask.shape[-2] > 1 else mask
    return attention_logits(q_BHND[..., :1, :], k_BHMD, scale=scale, mask=row_mask).squeeze(-2)
