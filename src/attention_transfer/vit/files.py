"""Weights files, as the projects that publish vision transformers lay them out."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
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


def read_state(path: Path, *, network: str | None = None) -> dict[str, Tensor]:
    """Read the weights of a ViT from a file, without running code from it.

    Files of MAE, DINO, DINOv2, iBOT, MSN, I-JEPA, MoCo v3, DeiT, BEiT and Attention Transfer are known: the network is
    looked for under their keys and prefixes. Where a file holds several, the choice is logged with its reason.

    Args:
        path: a safetensors or PyTorch file.
        network: which network to take where there are several, e.g. "teacher" or "student"; `None` takes the one that
            the file's authors evaluate.

    Returns:
        The weights by name, without prefixes.

    Raises:
        UserError: there is no such file or network, or the file is truncated, not a checkpoint, or holds pickled code.
    """
    networks = _networks(_flat(_read(path)))
    if not any(networks.values()):
        raise UserError(f"{path} holds no tensors; name a file of model weights")
    places = sorted(networks, key=_rank)
    if network is not None:
        named = [place for place in places if network in place.split(".")]
        if not named:
            there = ", ".join(place.strip(".") for place in places if place) or "one without a name"
            raise UserError(f"{path} holds no network {network!r}; it holds {there}")
        places = named
    elif len(places) > 1:
        reason = next((why for name, why in _NETWORKS.items() if name in places[0].split(".")), "it has no prefix")
        log.info(
            "%s holds %s; taken: %s, %s (another can be named)",
            path.name,
            ", ".join(place.strip(".") or "one without a name" for place in places),
            places[0].strip(".") or "the one without a name",
            reason,
        )
    return networks[places[0]]


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """All tensors under their full names, through nested dictionaries such as optimiser states' neighbours."""
    found: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            found[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping) and key not in ("optimizer", "scaler", "lr_scheduler"):
            found |= _flat(value, f"{prefix}{key}.")
    return found


def _networks(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The networks in a file by the prefix of their weights; the whole file where none is recognised."""
    places = {key.removesuffix(sign) for key in state for sign in _SIGNS if key == sign or key.endswith(f".{sign}")}
    return {
        place: {key.removeprefix(place): value for key, value in state.items() if key.startswith(place)}
        for place in places
    } or {"": _unnested(state)}


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
    """The weights file of a model's folder."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    return folder / "model.safetensors"


def unfit(folder: Path, error: Exception) -> UserError:
    """The error for a folder whose configuration and weights do not belong together."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"{folder} cannot be loaded: its config.json and weights do not fit ({reason[:160]})")


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no weights file {path}; check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Many published files carry the arguments of their training; a Namespace holds data only.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the readers fail in any way; all of them mean the same to the user
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} is not a readable checkpoint (truncated, of another kind, or with pickled code, which is not "
            f"run): {reason[:160]}; download it again or save it as safetensors"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no tensors; name a file of model weights")
    return content
