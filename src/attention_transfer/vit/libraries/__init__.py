"""What each library calls the parts of its vision transformers; one file a library, nothing of them known elsewhere."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.optim.swa_utils import AveragedModel

from attention_transfer.errors import UserError, nearest
from attention_transfer.vit.libraries.base import SUPPORTED as SUPPORTED
from attention_transfer.vit.libraries.base import Library as Library
from attention_transfer.vit.libraries.base import Network as Network
from attention_transfer.vit.libraries.base import Sizes as Sizes
from attention_transfer.vit.libraries.base import no_drop_path as no_drop_path
from attention_transfer.vit.libraries.description import Anatomy as Anatomy
from attention_transfer.vit.libraries.description import ViTSpec as ViTSpec
from attention_transfer.vit.libraries.initial import Initial as Initial

if TYPE_CHECKING:
    from attention_transfer.vit.libraries.timm_models import Timm

GROUP = "attention_transfer.libraries"
_HERE = "attention_transfer.vit.libraries"
# By name: the module and class here, and the package whose models it knows. A library is imported when one is met.
_OWN = {
    "timm": ("timm_models", "Timm", "timm"),
    "hf": ("transformers_models", "Transformers", "transformers"),
    "torchvision": ("torchvision_models", "Torchvision", "torchvision"),
}


def library_names() -> list[str]:
    """The names of all libraries, those of other packages included."""
    return [*_OWN, *_registered()]


@cache
def find_library(name: str) -> Library:
    """A library by its name.

    Raises:
        UserError: there is none of that name (the nearest is named), or what is registered under it is no library.
    """
    if name in _OWN:
        module, kind, _ = _OWN[name]
        return cast(Library, getattr(importlib.import_module(f"{_HERE}.{module}"), kind)())
    if name not in _registered():
        raise UserError(f"there is no library {name!r}; {nearest(name, library_names())}")
    kind = _registered()[name].load()
    if not (isinstance(kind, type) and issubclass(kind, Library)):
        raise UserError(f"the entry point {name!r} of {GROUP} is no library; derive its class from Library")
    return kind()


def all_libraries() -> list[Library]:
    """All libraries, those of other packages included; none of them loads what it does not need to be asked."""
    return [find_library(name) for name in library_names()]


def timm_library() -> Timm:
    """Timm, which the networks of this package are made with."""
    return cast("Timm", find_library("timm"))


@cache
def _registered() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in _OWN}


def _wrappers() -> tuple[type[nn.Module], ...]:
    """What torch puts around a model without changing what it computes; the model is their `.module`."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # which loads the compiler: nobody has wrapped in it before
    sharded = () if fsdp is None else (fsdp.FullyShardedDataParallel,)
    return (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel, *sharded)


def unwrapped(model: nn.Module) -> nn.Module:
    """The ViT itself: out of `torch.compile`, `DataParallel` and its like, and any module that holds no other ViT."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, _wrappers()):
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
    homes = {kind.__module__ for kind in type(model).__mro__}
    for name, (module, _, package) in _OWN.items():
        known = f"{_HERE}.{module}" in homes or any(home.partition(".")[0] == package for home in homes)
        if known and find_library(name).owns(model):
            return find_library(name)
    return next((find_library(name) for name in _registered() if find_library(name).owns(model)), None)


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
