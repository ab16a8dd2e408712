"""What each library calls the parts of its vision transformers; one file a library, nothing of them known elsewhere."""

from __future__ import annotations

from torch import nn

from attention_transfer.errors import UserError
from attention_transfer.vit.libraries.base import SUPPORTED as SUPPORTED
from attention_transfer.vit.libraries.base import Anatomy as Anatomy
from attention_transfer.vit.libraries.base import Library as Library
from attention_transfer.vit.libraries.base import ViTSpec as ViTSpec
from attention_transfer.vit.libraries.timm_models import Timm
from attention_transfer.vit.libraries.torchvision_models import Torchvision
from attention_transfer.vit.libraries.transformers_models import Transformers

LIBRARIES: dict[str, Library] = {"timm": Timm(), "hf": Transformers(), "torchvision": Torchvision()}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `DistributedDataParallel` (`.module`) and `torch.compile` (`._orig_mod`)."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def library_of(model: nn.Module) -> Library:
    """The library that a model comes from.

    Raises:
        UserError: it comes from none that is supported.
    """
    bare = unwrapped(model)
    for library in LIBRARIES.values():
        if library.owns(bare):
            return library
    raise UserError(f"{type(bare).__name__} has no supported attention: {SUPPORTED}")


def anatomy(model: nn.Module) -> Anatomy:
    """Where the parts of a ViT are.

    Raises:
        UserError: the model is no plain vision transformer.
    """
    return library_of(model).anatomy(unwrapped(model))
