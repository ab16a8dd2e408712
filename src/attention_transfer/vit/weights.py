"""Load a weights file into a model, and say what matched."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from attention_transfer.errors import UserError, first_line
from attention_transfer.vit.files import read_state
from attention_transfer.vit.libraries import Library, library_of, unwrapped

log = logging.getLogger("attention_transfer")


def load_weights(model: nn.Module, path: Path, name: str, *, network: str | None = None) -> None:
    """Load the backbone, and the head where it fits, from a weights file; log what matched, is new and was left over.

    Raises:
        UserError: the file can't be read, or weights of the backbone are missing, of another shape, or left over.
    """
    take_weights(model, read_state(path, network=network), path, name)


def take_weights(model: nn.Module, state: dict[str, Tensor], path: Path, name: str) -> None:
    """As [`load_weights`][attention_transfer.vit.weights.load_weights], for a file that was read already."""
    bare = unwrapped(model)
    library, wanted = library_of(bare), bare.state_dict()
    state = library.arranged(state, wanted)
    before = {key: tuple(value.shape) for key, value in state.items()}
    try:
        state = library.adapted(state, bare)
    except (RuntimeError, ValueError, KeyError, AttributeError, AssertionError) as error:
        raise UserError(
            f"{path} holds another architecture than {name} ({_difference(library, state, wanted, error)})"
        ) from error
    heads = library.head_names(bare)
    used = {key: state[key] for key in wanted if key in state and state[key].shape == wanted[key].shape}
    optional = {key for key in wanted if key.startswith(heads) or library.derived.search(key)}
    left = sorted(key for key in state if key not in wanted and library.is_backbone(key))
    _refuse(path, name, wanted, state, used, optional, left)
    bare.load_state_dict(used, strict=False)
    for key, value in used.items():
        if key in before and before[key] != tuple(value.shape):
            log.debug("%s: %s resampled from %s to %s", path, key, before[key], tuple(value.shape))
    new = _listed(set(wanted) - set(used))
    log.debug("%s: %d weights loaded; new: %s; left over: %s", path, len(used), new, _listed(set(state) - set(used)))


def _difference(library: Library, state: dict[str, Tensor], wanted: dict[str, Tensor], error: Exception) -> str:
    """Which weights of the backbone are in a file or a model only; what the library said where all have a place."""
    surplus = [key for key in state if key not in wanted and library.is_backbone(key)]
    missing = [key for key in wanted if key not in state and library.is_backbone(key)]
    if not surplus and not missing:
        return first_line(error)
    kinds = ({re.sub(r"\.\d+\.", ".*.", key) for key in keys} for keys in (surplus, missing))
    only = (f"only the file has {_listed(next(kinds))}", f"only the architecture has {_listed(next(kinds))}")
    return "; ".join(said for said, keys in zip(only, (surplus, missing), strict=True) if keys)


def _refuse(
    path: Path,
    name: str,
    wanted: dict[str, Tensor],
    state: dict[str, Tensor],
    used: dict[str, Tensor],
    optional: set[str],
    left: list[str],
) -> None:
    """Refuse a file whose backbone is not the model's."""
    missing = sorted(key for key in wanted if key not in state and key not in optional)
    other = sorted(key for key in wanted if key in state and key not in used and key not in optional)
    if missing or other:
        example = (
            f"{other[0]} is {tuple(state[other[0]].shape)} where {tuple(wanted[other[0]].shape)} is needed"
            if other
            else f"{missing[0]} is not in it"
        )
        raise UserError(
            f"{path} holds another architecture than {name}: {len(missing)} weights are missing and {len(other)} have "
            f"another shape ({example}); name the architecture that it was saved from"
        )
    if left:
        raise UserError(
            f"{path} has {len(left)} weights of the backbone that {name} has no place for ({left[0]}, …), so "
            "that it would be another network; name the architecture that it was saved from"
        )


def _listed(names: Iterable[str], most: int = 6) -> str:
    """Names for a log line, blocks summed up."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return (", ".join(ordered[:most]) + more) or "none"
