"""Copies of a network that are what they seem: plain float weights that can be trained, and the same function."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attention_transfer.errors import UserError, first_line
from attention_transfer.vit.capture import capture
from attention_transfer.vit.describe import describe
from attention_transfer.vit.libraries import part_of, unwrapped

log = logging.getLogger("attention_transfer")

# How far a copy may be from its source, as a share of the source's norm; a GPU computes convolutions in TF32.
_APART, _APART_ON_GPU = 1e-3, 2e-2
# Names of weights that a hook of torch.nn.utils computes another weight from (weight norm, spectral norm, pruning).
_HOOKED = ("weight_g", "weight_orig")


def plain(model: nn.Module) -> nn.Module:
    """The network itself, if all its weights are plain float32; else a copy in which they are.

    Adapters (LoRA and others of peft) are merged into the weights that they adapt, parametrised weights (weight norm,
    spectral norm) become the weights that they give, and float16 and bfloat16 become float32. What was done is logged.

    Raises:
        UserError: it has layers that can't be trained, because they are quantised, or that can't be copied.
    """
    source = unwrapped(model)
    _refuse_quantised(source)
    half = half_precision(source)
    wrapped = any(_adapts(module) or parametrize.is_parametrized(module) for module in source.modules())
    if half is None and not wrapped:
        return source
    try:
        found = copy.deepcopy(source).cpu().eval()
    except RuntimeError as error:
        raise _not_copied(source, error) from error
    if half is not None:
        found.float()
        log.debug(
            "%s has %s weights; the copy has float32 ones", type(source).__name__, str(half).removeprefix("torch.")
        )
    done = Counter(
        merged for name, module in list(found.named_modules()) for merged in _made_plain(found, name, module)
    )
    for what, number in done.items():
        log.debug("%s: %s of %d layers merged into the weights of the copy", type(source).__name__, what, number)
    return found.train(source.training)


def half_precision(model: nn.Module) -> torch.dtype | None:
    """The precision of a network's weights where it is below float32: float16 or bfloat16."""
    kinds = {parameter.dtype for parameter in model.parameters()} & {torch.float16, torch.bfloat16}
    return next(iter(kinds), None)


def check_copied(source: nn.Module, student: nn.Module) -> None:
    """Check on an image of noise that a copy has its source's queries, keys and outputs of attention.

    Raises:
        UserError: it has not.
    """
    source = unwrapped(source)
    if half_precision(source) is not None:
        source = copy.deepcopy(source).float()
    theirs, ours = _seen(source), _seen(student)
    allowed = _APART if next(source.parameters()).device.type == "cpu" else _APART_ON_GPU
    for layer, (there, here) in enumerate(zip(theirs, ours, strict=True)):
        apart = max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(here, there, strict=True))
        if not apart <= allowed:
            raise UserError(
                f"a copy of this {type(source).__name__} attends otherwise than it does (block {layer}: {apart:.1%} "
                "apart), so it is not used; take adapters, hooks and replaced layers off it, or load the plain model"
            )


def check_part(model: nn.Module) -> str:
    """Name of the ViT in a module that is none itself, after a check that it gets the images as they are.

    Returns:
        Its name; empty where the model is a ViT.

    Raises:
        UserError: the module changes the images, so that their size and normalisation are not those of the ViT.
    """
    part = part_of(model)
    if part and any(not torch.equal(a, b) for a, b in zip(_seen(model)[0], _seen(unwrapped(model))[0], strict=True)):
        raise UserError(
            f"{type(model).__name__} changes the images before its {part} gets them, so that size and normalisation "
            f"of {part} are not those of its input; pass {part} itself, with images that are normalised for it"
        )
    return part


@torch.no_grad()
def _seen(model: nn.Module) -> list[tuple[Tensor, ...]]:
    """Queries, keys and values of each block on an image of noise, which is the same for all networks of a shape."""
    spec, like = describe(model), next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, spec.channels, *spec.image_size, generator=generator).to(like.device, like.dtype)
    modes = {module: module.training for module in model.modules()}
    try:
        with capture(model.eval()) as calls:
            model(image)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return [tuple(x.float().cpu() for x in (call.q, call.k, call.v)) for call in calls]


def _refuse_quantised(model: nn.Module) -> None:
    for name, module in model.named_modules():
        whole = "quantized" in type(module).__module__ or any(
            not parameter.is_floating_point() or type(parameter.data) is not Tensor
            for parameter in module.parameters(recurse=False)
        )
        if whole:
            raise UserError(
                f"{name} of {type(model).__name__} has no plain float weights ({type(module).__name__}: quantised, or "
                "of another tensor class), which can't be copied to train; load the model in float32 or half precision"
            )
        if hooked := [own for own in _HOOKED if hasattr(module, own)]:
            raise UserError(
                f"{name} of {type(model).__name__} computes its weight from {hooked[0]} by a hook, which can't be "
                "copied; call torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove first"
            )


def _adapts(module: Any) -> bool:
    """Whether a module is an adapter of peft around a layer, by what peft asks of one."""
    return hasattr(module, "unload_and_optionally_merge_module") or (
        hasattr(module, "get_base_layer") and hasattr(module, "merge")
    )


def _made_plain(model: nn.Module, name: str, module: Any) -> list[str]:
    """Replace one module of a copy by a plain one; gives what was merged."""
    if _adapts(module):
        if hasattr(module, "unload_and_optionally_merge_module"):
            base = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        else:
            module.merge(safe_merge=True)
            base = module.get_base_layer()
        model.set_submodule(name, cast(nn.Module, base))
        return ["adapters"]
    if not parametrize.is_parametrized(module):
        return []
    # Not by remove_parametrizations: it changes the class, which a copy shares with its source.
    weights = {own: getattr(module, own).detach().clone() for own in module.parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for own, weight in weights.items():
        module.register_parameter(own, nn.Parameter(weight))
    return ["parametrisations"]


def _not_copied(model: nn.Module, error: Exception) -> UserError:
    return UserError(
        f"this {type(model).__name__} can't be copied ({first_line(error)}); take hooks and replaced layers off it, or "
        "load the plain model"
    )
