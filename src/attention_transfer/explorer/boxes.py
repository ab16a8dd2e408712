"""A rectangle on an image, and how much of each patch lies in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.data import Placement
from attention_transfer.errors import UserError

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in shares of an image's width and height."""


def box_of(values: Sequence[float], size: tuple[int, int]) -> Box:
    """A rectangle in the pixels of an image of a size (width, height), as shares of it.

    Raises:
        UserError: these are not left, top, right and bottom.
    """
    if len(values) != 4 or not all(map(math.isfinite, values)) or values[0] >= values[2] or values[1] >= values[3]:
        raise UserError(f"box is {list(values)}; give left, top, right and bottom in pixels, the smaller first")
    (left, top, right, bottom), (width, height) = values, size
    return left / width, top / height, right / width, bottom / height


def coverage(placement: Placement, box: Box) -> Tensor:
    """The share of each patch's area that lies in a rectangle, float32 (rows · columns,)."""
    (width, height), (rows, columns) = placement.size, placement.grid
    left, top, right, bottom = placement.box
    x_C = _overlap(np.linspace(left, right, columns + 1), box[0] * width, box[2] * width)
    y_R = _overlap(np.linspace(top, bottom, rows + 1), box[1] * height, box[3] * height)
    return torch.from_numpy(np.outer(y_R, x_C).astype(np.float32).ravel())


def _overlap(edges: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """The share of each interval between edges that lies between two bounds."""
    inside = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    shares: NDArray[np.float64] = inside.clip(min=0) / np.diff(edges)
    return shares
