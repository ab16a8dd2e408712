"""Masks: what of an image is an object, and how many of its pixels lie in each patch.

Shapes: R and C rows and columns of patches, P patches, O objects, h and w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from attention_transfer.errors import UserError

VOID = 255
AREAS = tuple(round(0.1 * n, 1) for n in range(1, 10))
"""Shares of the image's area that the box of `centre-box` is chosen from."""


class MaskSequence(Protocol):
    """Masks by index, each (h, w) as its image: 0 is background, any other value an object."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int, /) -> NDArray[Any]:
        """The mask at an index, of integers or bool."""


@dataclass(frozen=True)
class MaskFiles:
    """Masks in image files of one channel: palettes (as VOC's) and grey levels count as the numbers that they are.

    Attributes:
        paths: the files, in the order of the images.
    """

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> NDArray[Any]:
        with Image.open(self.paths[index]) as file:
            mask = np.asarray(file)
        if mask.ndim != 2:
            raise UserError(
                f"{self.paths[index]} is in colour; give masks with one number a pixel (a palette, or grey)"
            )
        return mask


@dataclass(frozen=True, eq=False)
class Regions:
    """One image's mask, as far as scores depend on it.

    Attributes:
        objects: pixels of each object in each patch, (O, P).
        area: pixels that count in each patch, (P,).
        boxes: Jaccard index of each box of `AREAS`, mean over objects.
    """

    objects: NDArray[np.int64]
    area: NDArray[np.int64]
    boxes: NDArray[np.float64]


def checked_mask(mask: NDArray[Any], size: tuple[int, int], index: int) -> NDArray[np.int64]:
    """A mask as integers.

    Raises:
        UserError: it is not of its image's size (width, height).
    """
    if mask.shape != size[::-1]:
        shape = "×".join(map(str, mask.shape))
        raise UserError(f"mask {index} is {shape}, but its image is {size[1]}×{size[0]} (height × width); resize one")
    return mask.astype(np.int64)


def regions_of(mask_hw: NDArray[np.int64], grid: tuple[int, int], void: int | None, count_void: bool) -> Regions | None:
    """`None` where there is no object."""
    counted = np.ones_like(mask_hw, dtype=np.bool_) if void is None or count_void else mask_hw != void
    values = [value for value in np.unique(mask_hw) if value not in (0, void)]
    if not values:
        return None
    objects_Ohw = np.stack([mask_hw == value for value in values])
    patches_hw, total = _nearest(mask_hw.shape[0], mask_hw.shape[1], grid), grid[0] * grid[1]
    boxes = [_in_box(objects_Ohw, counted, area) for area in AREAS]
    return Regions(
        np.stack([np.bincount(patches_hw[one], minlength=total) for one in objects_Ohw]),
        np.bincount(patches_hw[counted], minlength=total),
        np.array(boxes),
    )


@lru_cache(maxsize=256)
def _nearest(height: int, width: int, grid: tuple[int, int]) -> NDArray[np.int64]:
    """The patch that each pixel gets its value from, as `interpolate` enlarges by nearest neighbours, (h, w)."""
    patches = torch.arange(grid[0] * grid[1], dtype=torch.float64).view(1, 1, *grid)
    return F.interpolate(patches, size=(height, width), mode="nearest")[0, 0].long().numpy()


def _in_box(objects_Ohw: NDArray[np.bool_], counted: NDArray[np.bool_], area: float) -> float:
    """Jaccard index of objects and a box in the middle with the image's proportions, mean over objects."""
    top, left = (round(side * (1 - area**0.5) / 2) for side in counted.shape)
    inside = (slice(top, counted.shape[0] - top), slice(left, counted.shape[1] - left))
    both = objects_Ohw[:, *inside].sum(axis=(1, 2))
    return float(np.mean(both / (objects_Ohw.sum(axis=(1, 2)) + counted[inside].sum() - both)))
