"""What each library calls the parts of its vision transformers; one file a library, nothing of them known elsewhere."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim.swa_utils import AveragedModel

from attention_transfer.errors import UserError
from attention_transfer.vit.libraries.base import SUPPORTED as SUPPORTED
from attention_transfer.vit.libraries.base import Anatomy as Anatomy
from attention_transfer.vit.libraries.base import Library as Library
from attention_transfer.vit.libraries.base import ViTSpec as ViTSpec
from attention_transfer.vit.libraries.timm_models import Timm
from attention_transfer.vit.libraries.torchvision_models import Torchvision
from attention_transfer.vit.libraries.transformers_models import Transformers

LIBRARIES: dict[str, Library] = {"timm": Timm(), "hf": Transformers(), "torchvision": Torchvision()}


# What torch puts around a model without changing what it computes; the model is their `.module`.
_WRAPPERS = (
    nn.DataParallel,
    nn.parallel.DistributedDataParallel,
    AveragedModel,
    FullyShardedDataParallel,
)


def unwrapped(model: nn.Module) -> nn.Module:
    """The ViT itself: out of `torch.compile`, `DataParallel` and its like, and any module that holds no other ViT."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, _WRAPPERS):
            inner = model.module
        if inner is None and hasattr(model, "peft_config") and hasattr(model, "get_base_model"):  # PeftModel
            inner = cast(Any, model).get_base_model()
        if not isinstance(inner, nn.Module):
            break
        model = inner
    inside = _inside(model)
    return next(iter(inside.values())) if len(inside) == 1 else model


def part_of(model: nn.Module) -> str:
    """Name of the ViT in a module that is none itself, e.g. "backbone"; empty where the model is one, or holds none."""
    bare = unwrapped(model)
    if _owner(bare) is None or _owner(model) is not None:
        return ""
    return next((name for name, module in model.named_modules() if module is bare), "")


def library_of(model: nn.Module) -> Library:
    """The library that a model comes from.

    Raises:
        UserError: it comes from none that is supported, or holds several ViTs.
    """
    bare = unwrapped(model)
    if (library := _owner(bare)) is not None:
        return library
    if inside := _inside(bare):
        raise UserError(
            f"{type(bare).__name__} holds several vision transformers, {', '.join(inside)}; pass one of them"
        )
    raise UserError(f"{type(bare).__name__} has no supported attention: {SUPPORTED}")


def _owner(model: nn.Module) -> Library | None:
    return next((library for library in LIBRARIES.values() if library.owns(model)), None)


def _inside(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost ViTs in a module of no library, by name."""
    found: dict[str, nn.Module] = {}
    if _owner(model) is not None:
        return found
    for name, module in model.named_modules():
        library = None if any(name.startswith(f"{outer}.") for outer in found) else _owner(module)
        if library is not None and _is_vit(library, module):
            found[name] = module
    return found


def _is_vit(library: Library, module: nn.Module) -> bool:
    try:
        library.anatomy(module)
    except (UserError, AttributeError, StopIteration):  # a layer
        return False
    return True


def anatomy(model: nn.Module) -> Anatomy:
    """Where the parts of a ViT are.

    Raises:
        UserError: the model is no plain vision transformer.
    """
    return library_of(model).anatomy(unwrapped(model))
