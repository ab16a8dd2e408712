"""Make a vision transformer from a name, a folder or a weights file; and save one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, cast

import timm
from torch import nn

from attention_transfer.errors import UserError, nearest
from attention_transfer.vit.describe import describe
from attention_transfer.vit.files import read_network
from attention_transfer.vit.libraries import LIBRARIES, library_of, unwrapped
from attention_transfer.vit.recognise import architecture_of
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
}
_FORMS = (
    "timm/<name>, hf/<name or folder>, torchvision/<name>, builtin/vit_digits, the folder of a run or of an exported "
    "model, or a weights file"
)


def load_vit(
    spec: str,
    *,
    pretrained: bool | str = True,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    network: str | None = None,
) -> nn.Module:
    """Make a vision transformer.

    Args:
        spec: `timm/<name>`, `hf/<name or folder>` or `torchvision/<name>`; the folder of a run or of an exported model;
            a weights file (its architecture is read from the weights' shapes); or `builtin/vit_digits`.
        pretrained: `True` loads the weights that belong to the name or folder, `False` initialises at random, a path
            loads that weights file (safetensors or PyTorch) in the layout of its project: MAE, DINO, DINOv2, MoCo v3,
            iBOT, MSN, DeiT, BEiT, Attention Transfer.
        num_classes: outputs of the head; `None` keeps what the model has, 0 leaves the head out.
        image_size: input pixels, a number or (height, width); `None` keeps the model's own. Position embeddings are
            resampled.
        patch_size: pixels of a patch's side (timm only); `None` keeps the model's own. Patch kernels are resampled.
        network: which network of a weights file that holds several, e.g. "teacher", "student" or
            "student.module.backbone"; `None` takes the one that its authors evaluate.

    Returns:
        The model, in eval mode, on the CPU.

    Raises:
        UserError: the name does not exist (the nearest is named), weights are missing, damaged or of another
            architecture, or the model's attention is not supported.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if network is not None and not (isinstance(pretrained, str) or Path(spec).is_file()):
        raise UserError("network chooses among those of a weights file, but no file is named; leave it out")
    options: dict[str, Any] = {"num_classes": num_classes, "image_size": size, "patch_size": patch_size}
    source, _, name = spec.partition("/")
    if Path(spec).is_file():
        model = _from_file(Path(spec), pretrained, network, options)
    elif source in LIBRARIES and name and not (source != "hf" and Path(spec).exists()):
        model = LIBRARIES[source].build(name, pretrained=pretrained is True, **options)
    elif source == "builtin":
        model = _builtin(name, options, pretrained is True)
    else:
        model = _from_folder(Path(spec), options, pretrained is True)
    describe(model)  # refuses what is not a plain ViT
    if isinstance(pretrained, str):
        load_weights(model, Path(pretrained), spec, network=network)
    return model.eval()


def save_vit(model: nn.Module, folder: Path, *, labels: list[str] | None = None) -> None:
    """Write `config.json` and `model.safetensors` in the format of the model's library.

    `timm.create_model("local-dir:…", pretrained=True)` loads a model of timm, `from_pretrained` one of transformers,
    and `load_vit` any. The folder appears whole or not at all; one that is there is replaced.

    Raises:
        OSError: the folder can't be written; it is named.
    """
    bare = unwrapped(model)
    with whole_folder(folder) as written:
        library_of(bare).save(bare, written, labels)
        for file in written.iterdir():
            file.chmod(0o644)


def labels_of(model: nn.Module) -> list[str] | None:
    """Names of a model's classes, where they were saved with it."""
    bare = unwrapped(model)
    return library_of(bare).labels(bare)


def _builtin(name: str, options: dict[str, Any], pretrained: bool) -> nn.Module:
    if name not in _BUILTIN:
        raise UserError(f"there is no built-in model {name!r}; {nearest(name, _BUILTIN)}")
    if pretrained:
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
    return cast(nn.Module, timm.create_model(**{**_BUILTIN[name], **chosen}))


def _from_folder(folder: Path, options: dict[str, Any], pretrained: bool) -> nn.Module:
    if not folder.is_dir():
        raise UserError(f"{folder} not found; a model is {_FORMS}")
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no model (no config.json); name a finished run or an exported model")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is no JSON ({error}); export the model again") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'} describes no model (it holds no names); export the model again")
    library = "hf" if "model_type" in config else config.get("library", "timm")
    if not isinstance(library, str) or library not in LIBRARIES:
        raise UserError(
            f"{folder / 'config.json'} names the library {library!r}, which is not known; "
            f"{nearest(str(library), LIBRARIES)}"
        )
    return LIBRARIES[library].open(folder, pretrained=pretrained, **options)


def _from_file(path: Path, pretrained: bool | str, network: str | None, options: dict[str, Any]) -> nn.Module:
    if isinstance(pretrained, str):
        raise UserError(f"{path} is a weights file already; name an architecture, or leave --pretrained out")
    found = read_network(path, network=network)
    architecture = architecture_of(found, path, options["image_size"])
    size = {"img_size": options["image_size"] or architecture["img_size"]}
    size |= {"patch_size": options["patch_size"] or architecture["patch_size"]}
    classes = architecture["num_classes"] if options["num_classes"] is None else options["num_classes"]
    model = cast(nn.Module, timm.create_model(**{**architecture, **size, "num_classes": classes}))
    if pretrained:
        take_weights(model, found.state, path, architecture["model_name"])
    return model
