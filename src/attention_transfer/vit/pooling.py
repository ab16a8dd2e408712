"""How a network gathers its tokens for the head."""

from __future__ import annotations

from typing import Any

from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from attention_transfer.config.choices import Pool
from attention_transfer.errors import UserError
from attention_transfer.vit.libraries import unwrapped


def set_pool(model: nn.Module, pool: Pool) -> None:
    """Let the head read the class token ("token"), or the mean of the patches, normalised after it ("avg").

    MAE and Attention Transfer fine-tune with "avg" networks that were pre-trained with "token". The final norm keeps
    its weights; only its place changes. The head keeps its weights too.

    Raises:
        UserError: the model is not a plain ViT or EVA of timm, or it has an attention-pool head or no class token.
    """
    vit: Any = unwrapped(model)
    if not isinstance(vit, VisionTransformer | Eva) or getattr(vit, "head_dist", None) is not None:
        raise UserError(f"{type(vit).__name__} gathers its tokens in its own way; leave pool out")
    if vit.global_pool not in ("token", "avg"):
        raise UserError(f"the model gathers its tokens by {vit.global_pool!r}; leave pool out")
    if pool == "token" and vit.cls_token is None:
        raise UserError("pool is 'token', but the model has no class token; set it to 'avg'")
    norms = [norm for norm in (vit.norm, vit.fc_norm) if not isinstance(norm, nn.Identity)]
    if len(norms) != 1:
        raise UserError(f"the model has {len(norms)} final norms, not one; leave pool out")
    vit.norm, vit.fc_norm = (nn.Identity(), norms[0]) if pool == "avg" else (norms[0], nn.Identity())
    head = vit.head
    vit.reset_classifier(vit.num_classes, global_pool=pool)  # so that timm writes the place down when it saves
    vit.head = head
