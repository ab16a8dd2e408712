"""An image as a network sees it, and what one of its tokens attends to: for pictures, and for the explorer.

Shapes: H heads, N tokens, R and C rows and columns of patches.
"""

from __future__ import annotations

from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn

from attention_transfer.data import Placement, eval_transform
from attention_transfer.errors import UserError
from attention_transfer.vit import AttentionCall, ViTSpec, capture

RowQuery = Literal["class", "mean"] | int
"""Whose row: the class token's, that of the patches' mean query, or that of the token with this index."""


def seen(spec: ViTSpec, image: Image.Image) -> tuple[Tensor, Placement]:
    """An image, upright and of any mode and size, as a network's input, and where its patches lie on the image.

    Returns:
        float32 (1, channels, height, width), normalised, on the CPU; and the placement.
    """
    return eval_transform(spec)(image)[None], Placement.of(spec, image.size)


def row_of(call: AttentionCall, query: RowQuery) -> Tensor:
    """What one token of the first image attends to in a layer, without a map of N×N.

    Returns:
        float32 (H, N), on the CPU; rows sum to one.

    Raises:
        UserError: there is no such token.
    """
    if isinstance(query, int):
        tokens = call.q.shape[-2]
        if not 0 <= query < tokens:
            raise UserError(f"there is no token {query}; choose from 0 to {tokens - 1}")
        row = call.rows(slice(query, query + 1))
    else:
        row = call.query_row(query)
    row_HN: Tensor = row.as_logits().maps()[0].squeeze(-2).float().cpu()
    return row_HN


@torch.no_grad()
def attention_rows(
    network: nn.Module, pixels: Tensor, layer: int, query: RowQuery, *, vit: nn.Module | None = None
) -> Tensor:
    """What one token attends to in one layer, a row a head.

    Args:
        network: what is run, in eval mode.
        pixels: its input, (1, channels, height, width), as `seen` gives it.
        layer: index of the block, negative from the end.
        query: whose row it is.
        vit: the vision transformer in it whose attention is wanted; default the only one.

    Returns:
        float32 (H, N), on the CPU; rows sum to one.

    Raises:
        UserError: there is no such layer or token.
    """
    with capture(network if vit is None else vit, layers=[layer]) as calls:
        network(pixels.to(next(network.parameters()).device))
    return row_of(calls[-1], query)
