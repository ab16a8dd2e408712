"""From which patches the class token's last state came: attention followed through all blocks.

Both methods multiply one row by a matrix a block, from the last block to the first, and so never multiply two matrices
of N×N, nor store a map: rows are computed in tiles from queries and keys.

Shapes: B images, H heads, N tokens, R and C rows and columns of patches, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from attention_transfer.attention import AttentionCall, attention_maps
from attention_transfer.errors import UserError
from attention_transfer.hooks import attend
from attention_transfer.vit.capture import capture, hook_attention, logits_of
from attention_transfer.vit.describe import describe
from attention_transfer.vit.libraries import ViTSpec

_TILE = 64  # rows of the maps that are in memory at once

Query = Literal["class", "mean"] | int | None
"""Whose row: the class token's, the mean of the patches', that of the token with this index, or, by default, the class
token's where there is one, and else the patches' mean."""


@torch.no_grad()
def rollout(
    model: nn.Module,
    images: Tensor,
    *,
    vit: nn.Module | None = None,
    query: Query = None,
) -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020): the row of `Π (A + I) / 2`, from the last block to the first.

    `A` is a block's map, mean over heads; the identity stands for the residual connection.

    Args:
        model: what is run, in eval mode.
        images: normalised, (B, channels, height, width).
        vit: the vision transformer in it; default the only one.
        query: whose row it is; see `Query`.

    Returns:
        What came from each patch, not negative, float32 or wider, (B, R, C). What came from prefix tokens is missing
        from its sum.

    Raises:
        UserError: the model is no plain vision transformer, or lacks the token that is asked for.
    """
    vit = model if vit is None else vit
    with capture(vit) as calls:
        model(images)
    return rollout_of(calls, describe(vit), query=query)


def rollout_of(calls: Sequence[AttentionCall], spec: ViTSpec, *, query: Query = None) -> Tensor:
    """As [`rollout`][attention_transfer.vit.attribution.rollout], from the calls of all blocks, first to last."""
    row_BN = _first_row(calls[-1], spec, query)
    for call in reversed(calls):
        row_BN = (row_BN + _through(call, row_BN, lambda maps, _: maps)) / 2
    return _on_patches(row_BN, spec)


def relevance(
    model: nn.Module,
    images: Tensor,
    target: int | Tensor | None = None,
    *,
    vit: nn.Module | None = None,
    query: Query = None,
) -> Tensor:
    """Relevance of each patch for a class (Chefer, Gur and Wolf, ICCV 2021): a row of `Π (I + Ā)`, without `I`.

    `Ā = mean_h (∇A ⊙ A)⁺`, where `∇A` is the gradient of the class's logit with respect to a block's maps `A`. As a
    block puts out `O = A V`, `∇A = ∇O Vᵀ`: the fused kernels stay in use, and no map is part of the graph.

    Args:
        model: a classifier, in eval mode.
        images: normalised, (B, channels, height, width).
        target: the class of all images, or of each (B,); default the one that the model predicts.
        vit: the vision transformer in it; default the only one.
        query: whose row it is; see `Query`.

    Returns:
        Not negative, float32 or wider, (B, R, C). The gradients of the model's weights stay as they are.

    Raises:
        UserError: the model has no such class, is no plain vision transformer, lacks the token that is asked for, or
            its attention is replaced by an `AttentionTransfer`, whose teacher's maps no class depends on.
    """
    vit = model if vit is None else vit
    spec = describe(vit)
    seen: list[tuple[AttentionCall, Tensor]] = []

    def attend_and_keep(call: AttentionCall) -> Tensor:
        output = attend(call)
        seen.append((call, output))
        return output

    handles = hook_attention(vit, dict.fromkeys(range(spec.depth), attend_and_keep))
    try:
        with torch.enable_grad():
            logits_BC = logits_of(model(images.detach().requires_grad_()))
            score = _chosen(logits_BC, target).sum()
    finally:
        for handle in handles:
            handle.remove()
    gradients = torch.autograd.grad(score, [output for _, output in seen], materialize_grads=True)
    with torch.no_grad():
        first_BN = row_BN = _first_row(seen[-1][0], spec, query)
        for (call, _), gradient_BHND in zip(reversed(seen), reversed(gradients), strict=True):
            row_BN = row_BN + _through(call, row_BN, _positive(call, gradient_BHND))
        return _on_patches(row_BN - first_BN, spec)


def _positive(call: AttentionCall, gradient_BHND: Tensor) -> Callable[[Tensor, slice], Tensor]:
    """Makes `(∇A ⊙ A)⁺` of some rows of `A`."""

    def weigh(maps_BHRN: Tensor, rows: slice) -> Tensor:
        gradient_BHRN = gradient_BHND[:, :, rows].to(maps_BHRN) @ call.v.to(maps_BHRN).transpose(-2, -1)
        return (maps_BHRN * gradient_BHRN).clamp_min(0)

    return weigh


def _through(call: AttentionCall, row_BN: Tensor, weigh: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """A row times a block's maps, which are weighed and averaged over heads, (B, N)."""
    total = torch.zeros_like(row_BN)
    for start in range(0, row_BN.shape[1], _TILE):
        rows = slice(start, start + _TILE)
        mask = call.mask
        if mask is not None and mask.dim() > 1 and mask.shape[-2] > 1:
            mask = mask[..., rows, :]
        maps_BHRN = attention_maps(
            call.q[:, :, rows].to(row_BN.dtype), call.k.to(row_BN.dtype), scale=call.scale, mask=mask
        )
        total += torch.einsum("br,bhrn->bn", row_BN[:, rows], weigh(maps_BHRN, rows)) / maps_BHRN.shape[1]
    return total


def _first_row(call: AttentionCall, spec: ViTSpec, query: Query) -> Tensor:
    """The tokens whose row it is, with weights that sum to one, (B, N)."""
    if query == "class" and not spec.class_token:
        raise UserError('there is no class token; choose query="mean"')
    batch, _, tokens, _ = call.q.shape
    if isinstance(query, int) and not 0 <= query < tokens:
        raise UserError(f"there is no token {query}; choose from 0 to {tokens - 1}")
    row_BN = call.q.new_zeros(batch, tokens, dtype=torch.promote_types(call.q.dtype, torch.float32))
    if isinstance(query, int):
        chosen = slice(query, query + 1)
    else:
        of_class = query == "class" or (query is None and spec.class_token)
        chosen = slice(0, 1) if of_class else spec.tokens.patches(tokens)
    row_BN[:, chosen] = 1 / (chosen.stop - chosen.start)
    return row_BN


def _on_patches(row_BN: Tensor, spec: ViTSpec) -> Tensor:
    patches_BRC: Tensor = row_BN[:, spec.tokens.patches(row_BN.shape[1])].unflatten(1, spec.grid)
    return patches_BRC


def _chosen(logits_BC: Tensor, target: int | Tensor | None) -> Tensor:
    """The logit of each image's class, (B,)."""
    batch, classes = logits_BC.shape
    if target is None:
        return logits_BC.max(dim=1).values
    labels = torch.as_tensor(target, device=logits_BC.device).expand(batch)
    if not bool(((labels >= 0) & (labels < classes)).all()):
        raise UserError(f"target is {target}, but the model has {classes} classes; choose from 0 to {classes - 1}")
    return logits_BC.gather(1, labels[:, None]).squeeze(1)
