"""Weights files, as the projects that publish vision transformers lay them out."""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from attention_transfer.errors import UserError

log = logging.getLogger("attention_transfer")

# Names of networks in published files, best first: where a file holds several, the one that its authors evaluate.
_NETWORKS = {
    "model_ema": "the moving average of the weights",
    "state_dict_ema": "the moving average of the weights",
    "target_encoder": "the encoder that its authors evaluate (I-JEPA, MSN)",
    "base_encoder": "the encoder that its authors evaluate (MoCo v3)",
    "teacher": "the network that its authors evaluate (DINO, DINOv2, iBOT)",
    "student": "the network that was trained",
    "momentum_encoder": "the moving average of the encoder (MoCo v3)",
    "encoder": "the encoder",
    "model": "the model",
    "state_dict": "the model",
    "module": "the model",
}
# A weight that every plain ViT has tells where a network is in a file.
_SIGNS = (
    "patch_embed.proj.weight",
    "conv_proj.weight",
    "embeds.proj.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
    "embeddings.patch_embedding.weight",
)
# Heads that stand beside their backbone in a file.
_HEAD = re.compile(r"(cls_|distillation_)?classifier\.|head\.(weight|bias)$")
# Many published files carry the arguments of their training. A namespace and a path hold data only; paths are read as
# pure ones, which exist on every system, under the names that the versions of Python give their classes.
_DATA: list[Any] = [
    argparse.Namespace,
    *(
        (pure, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for pure, names in (
            (pathlib.PurePosixPath, ("PosixPath", "PurePosixPath")),
            (pathlib.PureWindowsPath, ("WindowsPath", "PureWindowsPath")),
        )
        for name in names
    ),
]
_INDEX = ".index.json"  # ends the name of the list of a folder's several weights files


@dataclass(frozen=True)
class Network:
    """A network in a weights file.

    Attributes:
        state: its weights by name, without prefixes.
        place: the prefix that they have in the file, such as "teacher.backbone."; empty where there is none.
        arch: the architecture that the file names, in the words of its project; empty where it names none.
    """

    state: dict[str, Tensor]
    place: str = ""
    arch: str = ""


def read_state(path: Path, *, network: str | None = None) -> dict[str, Tensor]:
    """Read the weights of a ViT from a file, without running code from it.

    Files of MAE, DINO, DINOv2, iBOT, MSN, I-JEPA, MoCo v3, DeiT, BEiT and Attention Transfer are known: the network is
    looked for under their keys and prefixes. Where a file holds several, the choice is logged with its reason.

    Args:
        path: a safetensors or PyTorch file, or the index of several.
        network: which network to take where there are several, e.g. "teacher", "student" or "student.module.backbone";
            `None` takes the one that the file's authors evaluate.

    Returns:
        The weights by name, without prefixes.

    Raises:
        UserError: there is no such file or network, or the file is truncated, not a checkpoint, or holds pickled code.
    """
    return read_network(path, network=network).state


def read_network(path: Path, *, network: str | None = None) -> Network:
    """As [`read_state`][attention_transfer.vit.read_state], with where the weights were found in the file."""
    content = _read(path)
    networks = _networks(_flat(content))
    if not any(networks.values()):
        raise UserError(f"{path} holds no tensors; name a file of model weights")
    place = _chosen(path, sorted(networks, key=_rank), network)
    arch = content.get("arch")
    return Network(_unchunked(networks[place]), place, arch if isinstance(arch, str) else "")


def _chosen(path: Path, places: list[str], network: str | None) -> str:
    """The first of the places, best first, that has the name; a choice among several is logged."""
    if network is not None:
        named = [place for place in places if network in (place.strip("."), *place.split("."))]
        if not named:
            there = ", ".join(place.strip(".") for place in places if place) or "one without a name"
            raise UserError(f"{path} holds no network {network!r}; it holds {there}")
        places = named
    if len(places) > 1:
        reason = next((why for name, why in _NETWORKS.items() if name in places[0].split(".")), "it has no prefix")
        log.info(
            "%s holds %s; taken: %s, %s (another can be named)",
            path.name,
            ", ".join(place.strip(".") or "one without a name" for place in places),
            places[0].strip(".") or "the one without a name",
            reason,
        )
    return places[0]


def _flat(content: Mapping[str, Any], prefix: str = "", around: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """All tensors under their full names, through nested dictionaries such as optimiser states' neighbours.

    `around` are the dictionaries that this one is in; one that holds itself is not followed.
    """
    found: dict[str, Tensor] = {}
    around = (*around, id(content))
    for key, value in content.items():
        if isinstance(value, Tensor):
            found[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping) and key not in ("optimizer", "scaler", "lr_scheduler"):
            found |= {} if id(value) in around else _flat(value, f"{prefix}{key}.", around)
    return found


def _networks(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The networks in a file by the prefix of their weights; the whole file where none is recognised."""
    places = {key.removesuffix(sign) for key in state for sign in _SIGNS if key == sign or key.endswith(f".{sign}")}
    return {
        place: _heads_beside(place, places, state)
        | {key.removeprefix(place): value for key, value in state.items() if key.startswith(place)}
        for place in places
    } or {"": _unnested(state)}


def _heads_beside(place: str, places: set[str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The classifier of a network that is one of two parts, as transformers writes them: `vit.…` and `classifier.…`."""
    parent = _parent(place)
    if not place or [_parent(other) for other in places if other].count(parent) > 1:
        return {}
    found = {key.removeprefix(parent): value for key, value in state.items() if key.startswith(parent)}
    return {key: value for key, value in found.items() if _HEAD.match(key)}


def _parent(place: str) -> str:
    """The prefix around a prefix: "teacher." of "teacher.backbone."."""
    return place[: place.rstrip(".").rfind(".") + 1]


def _unchunked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`blocks.<chunk>.<block>.` of DINOv2's training checkpoints as `blocks.<block>.`; chunks count on."""
    renamed = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in state.items()}
    return renamed if len(renamed) == len(state) else state


def _unnested(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the key under which a file keeps its one unrecognised network."""
    for name in ("model.", "state_dict.", "module."):
        if state and all(key.startswith(name) for key in state):
            return _unnested({key.removeprefix(name): value for key, value in state.items()})
    return state


def _rank(place: str) -> tuple[int, ...]:
    """Position in the order of preference: the moving average first, then by what kind of network it is."""
    names = list(_NETWORKS)
    found = sorted(names.index(part) for part in place.split(".") if part in names)
    # An Attention Transfer file keeps its frozen teacher beside the student that was trained.
    beside = "teacher" in place.split(".")[1:]
    return (beside, *found)


def weights_in(folder: Path) -> Path:
    """The weights file of a model's folder, or the index of several."""
    names = ("model.safetensors", "pytorch_model.bin")
    for name in (*names, *(f"{name}{_INDEX}" for name in names)):
        if (folder / name).is_file():
            return folder / name
    return folder / "model.safetensors"


def unfit(folder: Path, error: Exception) -> UserError:
    """The error for a folder whose configuration and weights do not belong together."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"{folder} cannot be loaded: its config.json and weights do not fit ({reason[:160]})")


def _read(path: Path) -> Mapping[str, Any]:
    if path.name.endswith(_INDEX) and path.is_file():
        return {key: value for part in _parts(path) for key, value in _read_one(part).items()}
    return _read_one(path)


def _read_one(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no weights file {path}; check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_DATA):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the readers fail in any way; all of them mean the same to the user
        raise UserError(
            f"{path} is not a readable checkpoint (truncated, of another kind, or with pickled code, which is not "
            f"run): {_reason(error)}; download it again or save it as safetensors"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no tensors; name a file of model weights")
    return content


def _parts(index: Path) -> list[Path]:
    """The weights files that an index lists."""
    try:
        return [
            index.parent / name
            for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of weights files (no weight_map); download it again") from error


def _reason(error: Exception) -> str:
    """What a reader found, without torch's advice to run the code."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    found = re.search(r"(Unsupported (global|operand|class)|Trying to load unsupported GLOBAL)[^\n]*", text)
    line = found[0].partition(". Please use")[0] if found else (text.splitlines() or [type(error).__name__])[0]
    return line[:160]
