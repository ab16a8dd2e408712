"""What a ViT is, in one record."""

from __future__ import annotations

from torch import nn

from attention_transfer.vit.libraries import ViTSpec, library_of, unwrapped


def describe(model: nn.Module) -> ViTSpec:
    """Describe a plain vision transformer of timm, Hugging Face transformers or torchvision.

    Raises:
        UserError: the model has no supported attention.
    """
    library, bare = library_of(model), unwrapped(model)
    library.anatomy(bare)
    return library.spec(bare)
