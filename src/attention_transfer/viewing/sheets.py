"""Draw attention over several images on one sheet, quickly enough to do so during training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from attention_transfer.data import Placement
from attention_transfer.data.decoding import in_mode
from attention_transfer.viewing.overlays import Scale, overlaid, shaded
from attention_transfer.writing import whole_file

_SIDE, _LARGEST = 112, 192  # pixels: a tile's longer side, at least and at most
_GAP, _APART = 6, 18  # pixels: between tiles, between rows of unlike images
_TYPE, _TITLES = 14, 24  # pixels: the type's size, and the height of the line above


@dataclass(frozen=True, eq=False)
class SheetRow:
    """The attention of one network over one image.

    Attributes:
        label: whose attention it is.
        image: of any size and mode.
        placement: where the network's patches lie on it.
        patches: the attention that the patches get, (rows, columns) for each column of the sheet; `None` for an empty
            one.
    """

    label: str
    image: Image.Image
    placement: Placement
    patches: Sequence[NDArray[np.float32] | None]


def attention_sheet(rows: Sequence[SheetRow], columns: Sequence[str]) -> Image.Image:
    """Draw one row for each network and image and one column for each layer: where the network looks, over the image.

    Each tile is scaled by itself, from 0 to its most attended patch; what the network did not see is shaded. It takes
    some hundredths of a second.

    Args:
        rows: at least one; images of one size.
        columns: what to call the layers.

    Returns:
        The sheet, RGB; the image alone stands in the first column.
    """
    font = ImageFont.load_default(_TYPE)
    tiles = []
    for row in rows:
        image = in_mode(row.image, "RGB")
        tiles.append([_tile(image, row.placement, patches) for patches in (None, *row.patches)])
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


def _tile(image: Image.Image, placement: Placement, patches: NDArray[np.float32] | None) -> Image.Image:
    longer = max(image.size)
    factor = min(_LARGEST, max(_SIDE, longer)) / longer
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    picture = image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR)
    if patches is None:
        return Image.fromarray(shaded(picture, placement))
    return Image.fromarray(overlaid(picture, placement, patches, Scale.of([patches])))
