"""Weights of Hugging Face transformers under the names that a model has in memory, and for its grid of patches."""

from __future__ import annotations

import copy
import math
import re
from typing import Any, cast

import torch
from timm.layers import resize_rel_pos_bias_table
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.errors import UserError
from attention_transfer.vit.libraries import transformers_families as families

Grid = tuple[int, int]
# The backbone inside a classifier; names without it are the same in both.
_PREFIX = re.compile(r"^(vit|deit|beit|dinov2|dinov2_with_registers|ijepa|data2vec_vision|vision_model|backbone)\.")
_POSITIONS = re.compile(r"(^|\.)embeddings\.position_embeddings?(\.weight)?$")
_TABLE = re.compile(r"relative_position_bias_table$")
_BACKBONE = re.compile(r"^(embeddings|encoder|layers?|model\.layer|shared_position_bias)\.")
_UNUSED = re.compile(r"(mask_token|position_ids|relative_position_index)$")  # computed, or of pre-training only


def renamed(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """With or without the backbone's prefix, as the model has it."""
    names = {_PREFIX.sub("", name): name for name in model.state_dict()}
    return {names.get(_PREFIX.sub("", name), name): value for name, value in state.items()}


def translated(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Under the names in memory, which transformers gives the weights of a file when it reads them.

    What has no place is named without the backbone's prefix. What has another shape, or a name that is not the file's,
    is not wanted and only a shape, on the meta device.
    """
    vit: Any = model
    found, info = type(vit).from_pretrained(
        None,
        config=copy.deepcopy(vit.config),
        state_dict=dict(state),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        dtype=torch.float32,
    )
    mismatched = {key: torch.empty(shape, device="meta") for key, shape, _ in info["mismatched_keys"]}
    absent = {*info["missing_keys"], *mismatched}
    unplaced = {_PREFIX.sub("", key): state.get(key, torch.empty(0, device="meta")) for key in info["unexpected_keys"]}
    return {**unplaced, **mismatched, **{key: v for key, v in found.state_dict().items() if key not in absent}}


def fitted(state: dict[str, Tensor], model: nn.Module, grid: Grid | None = None) -> dict[str, Tensor]:
    """Position embeddings and relative position tables resampled to the model's grid.

    Args:
        state: weights under names in memory or of a file.
        model: the model that they are for.
        grid: patches (rows, columns) that they are of; `None` takes the model's own or, if there are not as many, a
            square of them.
    """
    config = cast(Any, model).config
    new = families.grid(config)
    target = {_PREFIX.sub("", key): value for key, value in model.state_dict().items() if _POSITIONS.search(key)}
    fit = dict(state)
    for name, value in state.items():
        if (wanted := target.get(_PREFIX.sub("", name))) is not None:
            old = grid or (new if value.shape == wanted.shape else None)
            if old != new and families.tokens(config).suffix:
                raise UserError("the positions of detection tokens can't be resampled; leave the image size out")
            fit[name] = _positions(value, old, new, wanted.shape[-2] - math.prod(new))
        elif _TABLE.search(name) and value.dim() == 2:
            rows = (2 * new[0] - 1) * (2 * new[1] - 1) + 3  # the last three are of the class token
            if grid != new and (grid is not None or len(value) != rows):
                fit[name] = resize_rel_pos_bias_table(value, new, (rows, value.shape[1]), grid)
    return fit


def surplus(names: list[str]) -> list[str]:
    """Those of weights that a backbone could not be without; a head, a decoder or a text tower can be left over."""
    return sorted(name for name in names if _BACKBONE.match(_PREFIX.sub("", name)) and not _UNUSED.search(name))


def _positions(position: Tensor, old: Grid | None, new: Grid, beside: int) -> Tensor:
    """Position embeddings, (1, N, C) or (N, C), of one grid for another.

    `beside` are those of tokens that are not patches, which come first.
    """
    patches = position.shape[-2] - beside
    if old == new:
        return position
    rows, columns = old or (math.isqrt(patches), math.isqrt(patches))
    if rows * columns != patches:
        raise UserError(f"positions of {patches} patches, no square grid, can't be resampled to {new[0]}x{new[1]}")
    tokens_NC, grid_NC = position.flatten(0, -2).split([beside, patches])
    grid_1CHW = grid_NC.float().reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    grid_1CHW = F.interpolate(grid_1CHW, size=new, mode="bicubic", antialias=True)
    grid_NC = grid_1CHW.flatten(2)[0].T.to(position.dtype)
    return torch.cat([tokens_NC, grid_NC]).reshape(*position.shape[:-2], -1, position.shape[-1])
