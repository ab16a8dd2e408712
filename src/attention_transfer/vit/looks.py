"""What the patches of an image get of a network's attention."""

from __future__ import annotations

from torch import Tensor

from attention_transfer.attention import AttentionCall
from attention_transfer.vit.libraries import ViTSpec


def patch_attention(call: AttentionCall, spec: ViTSpec) -> Tensor:
    """The class token's attention to the patches, or else that of their mean query, mean over heads.

    Args:
        call: the attention of one layer.
        spec: the network.

    Returns:
        (B, rows, columns), not negative, float32 or wider. What prefix tokens get is missing from its sum.
    """
    maps_BHN = call.query_row("class" if spec.class_token else "mean").as_logits().maps().squeeze(-2)
    maps_BN = maps_BHN.mean(dim=1)
    patches_BRC: Tensor = maps_BN[:, spec.tokens.patches(maps_BN.shape[1])].unflatten(1, spec.grid)
    return patches_BRC
