"""The maps that a picture of attention shows: of one network on one image, as `show` is told.

Shapes: H heads, N tokens, R and C rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attention_transfer.config.show import Show
from attention_transfer.data import Placement
from attention_transfer.data.placement import Box, Floats
from attention_transfer.errors import UserError, nearest
from attention_transfer.evaluation.subjects import Subject
from attention_transfer.evaluation.views import RowQuery, row_of, seen
from attention_transfer.viewing.overlays import checked_map
from attention_transfer.vit import capture, relevance, rollout, select


@dataclass(frozen=True, eq=False)
class Shown:
    """A network's maps on one image.

    Attributes:
        placement: where its patches lie.
        maps: (R, C) by what they are, e.g. ("layer 11", "mean over heads").
        query: where the patch lies whose attention it is, in the image's pixels; `None` for other tokens.
    """

    placement: Placement
    maps: dict[tuple[str, str], Floats]
    query: Box | None = None

    def minus(self, other: Shown, names: tuple[str, str]) -> Shown:
        """The difference of each map, for two networks with the same patches and the same heads.

        Raises:
            UserError: these differ.
        """
        mine, theirs = self.placement, other.placement
        if (mine.grid, mine.box) != (theirs.grid, theirs.box):
            raise UserError(
                f"{names[0]} and {names[1]} have unlike patches ({mine.grid[0]}×{mine.grid[1]} and "
                f"{theirs.grid[0]}×{theirs.grid[1]}), so that there is no difference of maps; set image_size, or leave "
                "difference out"
            )
        if self.maps.keys() != other.maps.keys():
            raise UserError(
                f"{names[0]} and {names[1]} have unlike layers or heads, so that there is no difference of each; "
                "choose layers that both have and heads mean or max, or leave difference out"
            )
        return replace(self, maps={key: self.maps[key] - other.maps[key] for key in self.maps})


def maps_of(subject: Subject, image: Image.Image, config: Show) -> Shown:
    """Run a network on an image, and take the maps.

    Attention and rollout are shares times the number of tokens, so that 1 is uniform, and networks with unlike numbers
    of patches can share a scale. Relevance is as it is.

    Raises:
        UserError: there is no such token, patch, head or class, or a map is not finite.
    """
    pixels, placement = seen(subject.spec, image)
    pixels = pixels.to(next(subject.network.parameters()).device)
    query, patch = query_of(config, placement, subject)
    if config.source == "attention":
        maps = _of_attention(subject, pixels, placement, query, config)
    else:
        maps = {(config.source, ""): _of_all_blocks(subject, pixels, query, config)}
    checked = {key: checked_map(map_RC, subject.name) for key, map_RC in maps.items()}
    return Shown(placement, checked, None if patch is None else placement.patch_box(*patch))


def query_of(config: Show, placement: Placement, subject: Subject) -> tuple[RowQuery, tuple[int, int] | None]:
    """The token whose attention is wanted, and the patch that it is, if it is one.

    Raises:
        UserError: the network has no such token.
    """
    query, (rows, columns) = config.query, placement.grid
    if query is None:
        return ("class" if subject.spec.class_token else "mean"), None
    if query == "mean" or (query == "class" and subject.spec.class_token):
        return ("mean" if query == "mean" else "class"), None
    if query == "class":
        raise UserError(f"{subject.name} has no class token; leave query out, or choose mean or a patch")
    if config.point is not None:
        found = placement.patch_at(*config.point)
        if found is None:
            box = ", ".join(f"{edge:.0f}" for edge in placement.box)
            raise UserError(
                f"query {query} lies outside of what {subject.name} saw of the image (left, top, right, bottom: {box})"
            )
        return placement.token(*found), found
    if config.patch is not None:
        row, column = config.patch
        if row >= rows or column >= columns:
            raise UserError(
                f"query {query} lies outside of the {rows}×{columns} patches of {subject.name}; choose a row from 0 to "
                f"{rows - 1} and a column from 0 to {columns - 1}"
            )
        return placement.token(row, column), config.patch
    if query in placement.prefix:
        return placement.prefix.index(query), None
    if query in placement.suffix:
        return placement.patches.stop + placement.suffix.index(query), None
    others = {"mean", *placement.prefix, *placement.suffix}
    raise UserError(f"query {query!r} is no token of {subject.name}; {nearest(query, others)}, or give a patch as 3,4")


def _of_attention(
    subject: Subject, pixels: Tensor, placement: Placement, query: RowQuery, config: Show
) -> dict[tuple[str, str], Floats]:
    layers = select(config.blocks, subject.spec.depth, "layers")
    with torch.no_grad(), capture(subject.vit, layers=layers) as calls:
        subject.network(pixels)
    found = {}
    for call in calls:
        heads_HRC = placement.on_grid(row_of(call, query).numpy() * np.float32(placement.tokens))
        for name, map_RC in _merged(heads_HRC, config.heads).items():
            found[f"layer {call.layer}", name] = map_RC
    return found


def _merged(heads_HRC: Floats, heads: str | Sequence[int] | None) -> dict[str, Floats]:
    """Maps by what they are, of all heads together or of some."""
    if heads is None or heads == "mean":
        return {"mean over heads": heads_HRC.mean(axis=0)}
    if heads == "max":
        return {"maximum over heads": heads_HRC.max(axis=0)}
    if isinstance(heads, str):
        heads = range(len(heads_HRC)) if heads == "each" else [int(part) for part in heads.split(",")]
    return {f"head {head}": heads_HRC[head] for head in select(list(heads), len(heads_HRC), "heads")}


def _of_all_blocks(subject: Subject, pixels: Tensor, query: RowQuery, config: Show) -> Floats:
    if config.source == "rollout":
        map_BRC = rollout(subject.network, pixels, vit=subject.vit, query=query) * subject.spec.sequence
    else:
        target = _class_of(config.target, subject)
        map_BRC = relevance(subject.network, pixels, target, vit=subject.vit, query=query)
    found: Floats = map_BRC[0].float().cpu().numpy()
    return found


def _class_of(target: int | str | None, subject: Subject) -> int | None:
    """The index of a class."""
    if not subject.classes:
        raise UserError(f"{subject.name} has no classes, which relevance is for; choose attention or rollout")
    if isinstance(target, str):
        if target not in subject.classes:
            raise UserError(f"target {target!r} is no class of {subject.name}; {nearest(target, subject.classes)}")
        return subject.classes.index(target)
    return target
