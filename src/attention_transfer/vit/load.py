"""Make a vision transformer from a name, a folder or a weights file."""

from __future__ import annotations

import difflib
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import timm
from torch import Tensor, nn

from attention_transfer.errors import UserError, nearest
from attention_transfer.vit.capture import attention_modules

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


def load_vit(
    spec: str,
    *,
    pretrained: bool | str = True,
    num_classes: int | None = None,
    image_size: int | None = None,
) -> nn.Module:
    """Make a vision transformer.

    Args:
        spec: `timm/<name>`; the folder of a run or of an exported model; or `builtin/vit_digits`.
        pretrained: `True` loads the weights that belong to the name or folder, `False` initialises at random, a path
            loads that weights file (safetensors or PyTorch).
        num_classes: outputs of the head; `None` keeps what the model has, 0 leaves the head out.
        image_size: input pixels, height and width; `None` keeps the model's own. Position embeddings are resampled.

    Returns:
        The model, in eval mode, on the CPU.

    Raises:
        UserError: the name does not exist (the nearest is named), weights are missing, damaged or of another
            architecture, or the model's attention is not supported.
    """
    options = {"num_classes": num_classes, "img_size": image_size}
    weights_wanted = pretrained is True
    source, _, name = spec.partition("/")
    if source == "builtin":
        model = _builtin(name, options, weights_wanted)
    elif source == "timm" and not Path(spec).exists():
        model = _from_timm(name, options, weights_wanted)
    else:
        model = _from_folder(Path(spec), options, weights_wanted)
    attention_modules(model)  # refuses what is not a plain ViT
    if isinstance(pretrained, str):
        _load_file(model, Path(pretrained), spec)
    return model.eval()


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a weights file without running code from it.

    Raises:
        UserError: there is no such file, or it is truncated, not a checkpoint, or holds pickled code.
    """
    if not path.is_file():
        raise UserError(f"there is no weights file {path}; check the path")
    try:
        state = timm.models.load_state_dict(str(path), use_ema=True, device="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the readers fail in any way; all of them mean the same to the user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path} is not a readable checkpoint (truncated, of another kind, or with pickled code, which is not "
            f"run): {reason[:160]}; download it again or save it as safetensors"
        ) from error
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors; name a file of model weights")
    return tensors


def _builtin(name: str, options: dict[str, int | None], pretrained: bool) -> nn.Module:
    if name not in _BUILTIN:
        raise UserError(f"there is no built-in model {name!r}; {nearest(name, _BUILTIN)}")
    if pretrained:
        raise UserError(
            f"builtin/{name} has no weights of its own; make some with `attention-transfer pretrain` and name that "
            "folder, or pass --pretrained false"
        )
    chosen = {key: value for key, value in options.items() if value is not None}
    return cast(nn.Module, timm.create_model(**{**_BUILTIN[name], **chosen}))


def _from_timm(name: str, options: dict[str, int | None], pretrained: bool) -> nn.Module:
    architecture = name.split(".", maxsplit=1)[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(f'timm/{c}' for c in close)}?" if close else "see timm.list_models()"
        raise UserError(f"timm has no model {name!r}; {hint}")
    try:
        return cast(nn.Module, timm.create_model(name, pretrained=pretrained, **options))
    except TypeError as error:
        raise UserError(f"timm/{name} does not take an image size ({error}); leave it out") from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"the weights of timm/{name} could not be fetched ({type(error).__name__}); connect to the network, or "
            "give a local file with --pretrained FILE, or random weights with --pretrained false"
        ) from error


def _from_folder(folder: Path, options: dict[str, int | None], pretrained: bool) -> nn.Module:
    if not folder.is_dir():
        kind = "is a file: name its architecture and pass the file as --pretrained" if folder.exists() else "not found"
        raise UserError(f"{folder} {kind}; a model is timm/<name>, builtin/vit_digits, or the folder of a run or model")
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no model (no config.json); name a finished run or an exported model")
    weights = folder / "model.safetensors"
    if pretrained:
        read_state(weights)  # says in a sentence what timm would say in a traceback
    try:
        return cast(nn.Module, timm.create_model(f"local-dir:{folder.resolve()}", pretrained=pretrained, **options))
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{folder} cannot be loaded: its config.json and weights do not fit ({reason[:160]})"
        ) from error


def _load_file(model: nn.Module, path: Path, spec: str) -> None:
    """Load the backbone from a weights file; a head that does not fit stays new. Logs what it did."""
    state = read_state(path)
    # timm's own reading of published layouts, which also resamples position embeddings for another image size.
    if adapt := getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None):
        state = adapt(state, model)
    wanted = model.state_dict()
    head = [name for name in wanted if name.startswith(("head.", "head_dist."))]
    missing = [name for name in wanted if name not in state and name not in head]
    other = [name for name in wanted if name in state and state[name].shape != wanted[name].shape and name not in head]
    if missing or other:
        example = (
            f"{other[0]} is {tuple(state[other[0]].shape)} where {tuple(wanted[other[0]].shape)} is needed"
            if other
            else f"{missing[0]} is not in it"
        )
        raise UserError(
            f"{path} holds another architecture than {spec}: {len(missing)} weights are missing and {len(other)} have "
            f"another shape ({example}); name the architecture that it was saved from"
        )
    used = {name: state[name] for name in wanted if name in state and state[name].shape == wanted[name].shape}
    model.load_state_dict(used, strict=False)
    fresh, unused = sorted(set(wanted) - set(used)), sorted(set(state) - set(used))
    log.info(
        "%s: %d weights loaded, new: %s, left over: %s",
        path,
        len(used),
        ", ".join(fresh) or "none",
        ", ".join(unused) or "none",
    )


def save_vit(model: nn.Module, folder: Path, *, labels: list[str] | None = None) -> None:
    """Write `config.json` and `model.safetensors`, which `timm.create_model("local-dir:…", pretrained=True)` loads.

    The folder appears whole or not at all; one that is there is replaced.
    """
    vit: Any = model
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        written = Path(temporary) / folder.name
        timm.models.save_for_hf(
            vit,
            str(written),
            model_config={"pretrained_cfg": {"label_names": labels, "num_classes": len(labels)} if labels else {}},
            safe_serialization=True,
        )
        for file in written.iterdir():
            file.chmod(0o644)
        if folder.exists():
            shutil.rmtree(folder)
        written.rename(folder)
