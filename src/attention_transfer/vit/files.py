"""Weights files, as the projects that publish vision transformers lay them out."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from torch import Tensor

from attention_transfer.errors import UserError
from attention_transfer.vit.jax_names import from_jax
from attention_transfer.vit.libraries import Network, all_libraries
from attention_transfer.vit.reading import flat_tensors, read_content

log = logging.getLogger("attention_transfer")

# Names of networks in published files, best first: where a file holds several, the one that its authors evaluate.
_NETWORKS = {
    r"(.+_)?(ema|swa)(_.+)?": "the moving average of the weights",
    r"online_.+": "the network that its authors evaluate (BYOL)",
    r"target_encoder": "the encoder that its authors evaluate (I-JEPA, MSN)",
    r"base_encoder": "the encoder that its authors evaluate (MoCo v3)",
    r"teacher(_.+)?": "the network that its authors evaluate (DINO, DINOv2, iBOT)",
    r"student(_.+)?": "the network that was trained",
    r"backbone|encoder_q": "the network that was trained",
    r"(momentum|target|key)_.+|encoder_k": "the moving average of the encoder (MoCo v3)",
    r"encoder": "the encoder",
    r"model": "the model",
    r"state_dict": "the model",
    r"module": "the model",
    r"current_model_state": "the weights before they were averaged",
}


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
    content = from_jax(read_content(path))
    networks = _networks(flat_tensors(content, path))
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
        reason = next((why for name, why in _NETWORKS.items() if _named(name, places[0])), "it has no prefix")
        log.debug(
            "%s holds %s; taken: %s, %s (another can be named: %s#%s)",
            path.name,
            ", ".join(place.strip(".") or "one without a name" for place in places),
            places[0].strip(".") or "the one without a name",
            reason,
            path.name,
            places[1].strip("."),
        )
    return places[0]


def _named(name: str, place: str) -> bool:
    return any(re.fullmatch(name, part) for part in place.split("."))


def _networks(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The networks in a file by the prefix of their weights; the whole file where none is recognised."""
    signs = [sign for library in all_libraries() for sign in library.signs]
    places = {key.removesuffix(sign) for key in state for sign in signs if key == sign or key.endswith(f".{sign}")}
    return {
        place: _heads_beside(place, places, state)
        | {key.removeprefix(place): value for key, value in state.items() if key.startswith(place)}
        for place in places
    } or {"": _unnested(state)}


def _heads_beside(place: str, places: set[str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The classifier of a network that is one of two parts: `vit.…` and `classifier.…`."""
    parent = _parent(place)
    if not place or [_parent(other) for other in places if other].count(parent) > 1:
        return {}
    found = {key.removeprefix(parent): value for key, value in state.items() if key.startswith(parent)}
    heads = tuple(head for library in all_libraries() for head in library.heads_beside)
    return {key: value for key, value in found.items() if key.startswith(heads)}


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
    parts = place.split(".")
    found = sorted(
        next((rank for rank, name in enumerate(_NETWORKS) if re.fullmatch(name, part)), len(_NETWORKS))
        for part in parts
        if part
    )
    # A teacher with a backbone learns by its student's moving average, as DINO's does. One without, inside a model, is
    # the frozen teacher of an Attention Transfer file, beside the student that was trained.
    frozen = "teacher" in parts[1:] and not any("backbone" in part for part in parts)
    return (frozen, *found)
