"""Make a vision transformer from a name, a folder or a weights file; and save one."""

from __future__ import annotations

import logging
import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from attention_transfer.artifacts import MODEL
from attention_transfer.errors import UserError, nearest, raise_all
from attention_transfer.vit.describe import describe
from attention_transfer.vit.files import read_network
from attention_transfer.vit.folders import open_folder
from attention_transfer.vit.libraries import (
    Library,
    Network,
    all_libraries,
    find_library,
    library_names,
    library_of,
    timm_library,
    unwrapped,
)
from attention_transfer.vit.repair import RegisterNeurons, add_register, is_repaired
from attention_transfer.vit.weights import load_weights, take_weights
from attention_transfer.writing import whole_folder

log = logging.getLogger("attention_transfer")

_BUILTIN: dict[str, dict[str, Any]] = {
    # A small ViT for the embedded 8x8 digits: 16 patches and a class token, 4 blocks of width 64.
    "vit_digits": {
        "model_name": "vit_tiny_patch16_224",
        "img_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "embed_dim": 64,
        "depth": 4,
        "num_heads": 4,
        "num_classes": 10,
        "global_pool": "avg",
        "pretrained_cfg_overlay": {"mean": (0.5,), "std": (0.5,)},
    },
    # For 48x48 scenes: 36 patches and a class token, which the head reads; 4 blocks of width 64. Its weights are here.
    "vit_characters": {
        "model_name": "vit_tiny_patch16_224",
        "img_size": 48,
        "patch_size": 8,
        "embed_dim": 64,
        "depth": 4,
        "num_heads": 4,
        "num_classes": 36,
        "pretrained_cfg_overlay": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    },
}
_LARGEST = 4096  # pixels of a side, of which a patch of 16 makes 65,536 tokens
_FORMS = (
    "timm/<name>, hf/<name or folder>, torchvision/<name>, builtin/vit_characters, builtin/vit_digits, the folder of a "
    "run or of an exported model, or a weights file"
)


def load_vit(
    spec: str,
    *,
    pretrained: bool | str = True,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    network: str | None = None,
    repair: RegisterNeurons | None = None,
) -> nn.Module:
    """Make a vision transformer.

    Args:
        spec: `timm/<name>`, `hf/<name or folder>` or `torchvision/<name>`; the folder of a run or of an exported model;
            a weights file (its architecture is read from the weights' shapes); or `builtin/vit_characters`, whose
            weights are in the package, or `builtin/vit_digits`, which has none.
        pretrained: `True` loads the weights that belong to the name or folder, `False` initialises at random, a path
            loads that weights file (safetensors, PyTorch, `.npz` of JAX) in the layout of its project: MAE, DINO,
            DINOv2, MoCo v3, iBOT, MSN, DeiT, BEiT, torchvision, the original ViT, Attention Transfer.
        num_classes: outputs of the head; `None` keeps what the model has, 0 leaves the head out.
        image_size: input pixels, a number or (height, width); `None` keeps the model's own. Position embeddings are
            resampled.
        patch_size: pixels of a patch's side (timm only); `None` keeps the model's own. Patch kernels are resampled.
        network: which network of a weights file that holds several, e.g. "teacher", "student" or
            "student.module.backbone"; `None` takes the one that its authors evaluate. FILE#teacher says it in the name.
        repair: give the model a test-time register to which these neurons' activations are moved (timm only); `None`
            leaves it as it is. `find_register_neurons` finds them.

    Returns:
        The model, in eval mode, on the CPU, in float32.

    Raises:
        UserError: the name does not exist (the nearest is named), weights are missing, damaged, infinite or of another
            architecture, or the model's attention is not supported.
    """
    spec, inside = _located(spec)
    weights, chosen = _located(pretrained) if isinstance(pretrained, str) else (None, None)
    network = network or inside or chosen
    if network is not None and weights is None and _kind(spec) != "file":
        raise UserError("network chooses among those of a weights file, but no file is named; leave it out")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    raise_all(size_problems(image_size))
    options: dict[str, Any] = {"num_classes": num_classes, "image_size": size, "patch_size": patch_size}
    if _kind(spec) == "file":
        model = _from_file(Path(spec), pretrained if weights is None else weights, network, options)
    else:
        model = _from_name(spec, pretrained is True, options)
    describe(model)  # refuses what is not a plain ViT
    if weights is not None:
        load_weights(model, Path(weights), spec, network=network)
    if pretrained is not False:
        _refuse_not_finite(model, spec)
    _say_cut(model, spec)
    if repair is not None:
        add_register(model, repair)
    return model.eval()


def size_problems(image_size: int | tuple[int, int] | None) -> list[str]:
    """What is wrong with a size that is asked for, a sentence each: a slip of the hand would fill memory."""
    sides = (image_size,) if isinstance(image_size, int) else image_size or ()
    wrong = [side for side in sides if not 1 <= side <= _LARGEST]
    return [f"image_size is {side}; give a number of pixels from 1 to {_LARGEST}" for side in wrong]


def save_vit(model: nn.Module, folder: Path, *, labels: list[str] | None = None) -> None:
    """Write `config.json` and `model.safetensors` in the format of the model's library.

    `timm.create_model("local-dir:…", pretrained=True)` loads a model of timm, `from_pretrained` one of transformers,
    and `load_vit` any. The folder appears whole or not at all; the model of one that is there is replaced, and what
    else it holds stays.

    Raises:
        UserError: the model has weights beside those of its vision transformer, or a test-time register.
        OSError: the folder can't be written; it is named.
    """
    if is_repaired(model):
        raise UserError("no format has a place for a test-time register; save the model before it is repaired")
    bare = unwrapped(model)
    kept = {id(parameter) for parameter in bare.parameters()}
    if lost := [name for name, parameter in model.named_parameters() if id(parameter) not in kept]:
        raise UserError(
            f"{len(lost)} weights of {type(model).__name__} are not of the {type(bare).__name__} in it ({lost[0]}, …), "
            "and its format has no place for them; save that network alone, or this one by torch.save"
        )
    with whole_folder(folder, MODEL) as written:
        library_of(bare).save(bare, written, labels)
        for file in written.iterdir():
            file.chmod(0o644)


def labels_of(model: nn.Module) -> list[str] | None:
    """Names of a model's classes, where they were saved with it."""
    bare = unwrapped(model)
    return library_of(bare).labels(bare)


def _from_name(spec: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    source, _, name = spec.partition("/")
    if (library := _library_named(spec)) is not None:
        before = library.folders
        folder = name.removeprefix(before) if before is not None and name.startswith(before) else None
        if folder is not None and _kind(folder) == "folder":
            return open_folder(Path(folder), pretrained=pretrained, **options)
        if folder is not None and before:
            raise UserError(f"{folder} is no folder; a model is {_FORMS}")
        if before == "" or not _kind(spec):
            return library.build(name, pretrained=pretrained, **options)
    if source == "builtin":
        return _builtin(name, options, pretrained)
    if _kind(spec) != "folder":
        raise UserError(f"{spec} not found; a model is {_FORMS}")
    return open_folder(Path(spec), pretrained=pretrained, **options)


def _library_named(spec: str) -> Library | None:
    """The library that a name begins with, if it does."""
    source, _, name = spec.partition("/")
    return find_library(source) if name and source in library_names() else None


def _builtin(name: str, options: dict[str, Any], pretrained: bool) -> nn.Module:
    if name not in _BUILTIN:
        raise UserError(f"there is no built-in model {name!r}; {nearest(name, _BUILTIN)}")
    weights = files("attention_transfer.vit").joinpath("pretrained", f"{name}.safetensors")
    if pretrained and not weights.is_file():
        raise UserError(
            f"builtin/{name} has no weights of its own; make some with `attention-transfer pretrain` and name that "
            "folder, or pass --pretrained false"
        )
    given = {
        "num_classes": options["num_classes"],
        "img_size": options["image_size"],
        "patch_size": options["patch_size"],
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    model = timm_library().create(**{**_BUILTIN[name], **chosen})
    if pretrained:
        with as_file(weights) as path:
            load_weights(model, path, f"builtin/{name}")
    return model


def _located(text: str) -> tuple[str, str | None]:
    """A name with `~` expanded; and the network of a weights file that FILE#NETWORK names.

    Raises:
        UserError: it is empty.
    """
    if not text.strip():
        raise UserError(f"no model is named; a model is {_FORMS}")
    library = _library_named(text)
    start = "" if library is None or library.folders is None else f"{library.name}/{library.folders}"
    if text.startswith(start):
        text = start + os.path.expanduser(text.removeprefix(start))  # noqa: PTH111 (which fails for a ~name of nobody)
    file, mark, network = text.rpartition("#")
    if mark and network and _kind(file) == "file" and not _kind(text):
        return file, network
    return text, None


def _kind(text: str) -> Literal["", "file", "folder"]:
    """What a name is on the disk; one that is too long for a path, or can't be one, is nothing."""
    path = Path(text)
    try:
        return "folder" if path.is_dir() else "file" if path.is_file() else ""
    except (OSError, ValueError):
        return ""


def _say_cut(model: nn.Module, spec: str) -> None:
    """Say which pixels of an image no patch covers."""
    known = describe(model)
    kernel = next((m.kernel_size for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if kernel is None:
        return
    cut = [size - rows * int(side) for size, rows, side in zip(known.image_size, known.grid, kernel, strict=True)]
    if any(pixels > 0 for pixels in cut):
        log.warning(
            "%s: patches of %d×%d leave out %d rows and %d columns of images of %d×%d; give a size that they fill",
            spec,
            *kernel,
            *cut,
            *known.image_size,
        )


def _refuse_not_finite(model: nn.Module, spec: str) -> None:
    """Refuse weights with NaN or infinity: of a training that diverged, or damaged."""
    lost = [name for name, parameter in model.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if lost:
        raise UserError(
            f"{len(lost)} weights of {spec} hold NaN or infinity ({lost[0]}, …), from damage or a training that "
            "diverged; take another checkpoint"
        )


def _from_file(path: Path, pretrained: bool | str, network: str | None, options: dict[str, Any]) -> nn.Module:
    if isinstance(pretrained, str):
        raise UserError(f"{path} is a weights file already; name an architecture, or leave --pretrained out")
    found = read_network(path, network=network)
    model = _recognised(found, path, options)
    if pretrained:
        take_weights(model, found.state, path, describe(model).name)
    return model


def _recognised(network: Network, path: Path, options: dict[str, Any]) -> nn.Module:
    for library in all_libraries():
        if (model := library.recognise(network, path, **options)) is not None:
            return model
    known = next((library for library in all_libraries() if set(library.signs) & network.state.keys()), timm_library())
    raise UserError(
        f"the architecture of {path} can't be read from its weights; name the architecture and give the file as its "
        f"weights: {known.name}/<name> --pretrained {path}"
    )
