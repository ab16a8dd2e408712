"""How a network gathers its tokens for the head."""

from __future__ import annotations

from torch import nn

from attention_transfer.config.choices import Pool
from attention_transfer.vit.libraries import library_of, unwrapped


def set_pool(model: nn.Module, pool: Pool) -> None:
    """Let the head read the class token ("token"), or the mean of the patches, normalised after it ("avg").

    MAE and Attention Transfer fine-tune with "avg" networks that were pre-trained with "token". The final norm keeps
    its weights; only its place changes. The head keeps its weights too.

    Raises:
        UserError: the model is not a plain ViT or EVA of timm, or it has an attention-pool head or no class token.
    """
    library_of(model).set_pool(unwrapped(model), pool)
