"""Draw attention over several images on one sheet, quickly enough to do so during training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from attention_transfer.writing import whole_file

_SIDE, _GAP, _APART = 112, 6, 18  # pixels: a tile's longer side, between tiles, between rows of unlike images
_TYPE, _TITLES = 14, 24  # pixels: the type's size, and the height of the line above
_STRENGTH = 0.72  # of the colours over the image


@dataclass(frozen=True, eq=False)
class SheetRow:
    """The attention of one network over one image.

    Attributes:
        label: whose attention it is.
        image: uint8, (height, width) or (height, width, 3).
        patches: the attention that the patches get, (rows, columns) for each column of the sheet; `None` for an empty
            one.
    """

    label: str
    image: NDArray[np.uint8]
    patches: Sequence[NDArray[np.float32] | None]


def attention_sheet(rows: Sequence[SheetRow], columns: Sequence[str]) -> Image.Image:
    """Draw one row for each network and image and one column for each layer: where the network looks, over the image.

    Each tile is scaled by itself, from its least to its most attended patch. It takes some hundredths of a second.

    Args:
        rows: at least one; images of one size.
        columns: what to call the layers.

    Returns:
        The sheet, RGB; the image alone stands in the first column.
    """
    font = ImageFont.load_default(_TYPE)
    tiles = [[_tile(row.image, None), *(_tile(row.image, patches) for patches in row.patches)] for row in rows]
    width, height = tiles[0][0].size
    tops = [_TITLES]
    for before, row in pairwise(rows):
        tops.append(tops[-1] + height + (_GAP if row.image is before.image else _APART))
    left = round(max(font.getlength(row.label) for row in rows)) + 2 * _GAP
    lefts = [left + x * (width + _GAP) for x in range(len(columns) + 1)]
    sheet = Image.new("RGB", (lefts[-1] + width + _GAP, tops[-1] + height + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for x, title in zip(lefts, ["image", *columns], strict=True):
        pen.text((x + width / 2, _TITLES / 2), title, "black", font, anchor="mm")
    for y, row, line in zip(tops, rows, tiles, strict=True):
        pen.text((left - _GAP, y + height / 2), row.label, "black", font, anchor="rm")
        for x, tile in zip(lefts, line, strict=True):
            sheet.paste(tile, (x, y))
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> Path:
    """Write a sheet, whole or not at all."""
    with whole_file(path) as file:
        sheet.save(file, format="PNG", compress_level=3)
    return path


def under_attention(image: Image.Image, patches: NDArray[np.float32], strength: float) -> Image.Image:
    """An image, in grey, under the attention that its patches get, from black (least) to yellow (most).

    Args:
        image: of any size and mode; it becomes grey, so that all colour is attention.
        patches: (rows, columns); scaled by itself.
        strength: of the colours over the image, in [0, 1].
    """
    spread = float(patches.max() - patches.min())
    scaled = (patches - patches.min()) / spread if spread > 0 else np.zeros_like(patches)
    colours = Image.fromarray((mpl.colormaps["inferno"](scaled)[..., :3] * 255).round().astype(np.uint8))
    return Image.blend(
        image.convert("L").convert("RGB"), colours.resize(image.size, Image.Resampling.NEAREST), strength
    )


def _tile(image: NDArray[np.uint8], patches: NDArray[np.float32] | None) -> Image.Image:
    picture = Image.fromarray(image)
    factor = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    resample = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR
    picture = picture.resize(size, resample).convert("RGB")
    return picture if patches is None else under_attention(picture, patches, _STRENGTH)
