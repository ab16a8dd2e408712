"""Where the objects are in published data sets: boxes and masks, by image file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.data.decoding import read_image
from attention_transfer.data.layouts.layout import Boxes, Layout, Masks
from attention_transfer.data.layouts.registry import find_layout, layouts
from attention_transfer.errors import UserError

T = TypeVar("T")


def boxes(path: Path) -> Boxes:
    """The boxes of a data set: image file to x, y, width and height in pixels, counted from 0.

    For iNaturalist 2017 not all images have one; for ImageNet those of the validation images have.

    Raises:
        UserError: the data set is not known, has no boxes, or a file is missing or damaged.
    """
    layout = _layout(path)
    return _require(layout, layout.boxes, "boxes")(layout.home(path))


def masks(path: Path) -> Masks:
    """The masks of a data set: image file to mask file. `read_mask` reads these.

    Raises:
        UserError: the data set is not known, has no masks, or a file is missing or damaged.
    """
    layout = _layout(path)
    return _require(layout, layout.masks, "masks")(layout.home(path))


def read_mask(layout: Layout, mask: Path) -> NDArray[np.bool_]:
    """Where the object is in an image: (height, width).

    Args:
        layout: the data set.
        mask: a file out of `masks`.

    Raises:
        UserError: the data set has no masks, or the file is missing or damaged.
    """
    foreground = _require(layout, layout.foreground, "masks")
    image: Image.Image = read_image(mask)
    return foreground(np.asarray(image if image.mode in ("L", "P") else image.convert("L")))


def _layout(path: Path) -> Layout:
    layout = find_layout(path)
    if layout is None:
        raise UserError(f"{path} is not a data set with boxes or masks; those that have: {_titles('boxes', 'masks')}")
    return layout


def _require(layout: Layout, reader: T | None, what: str) -> T:
    if reader is None:
        raise UserError(f"{layout.title} has no {what}; those that have: {_titles(what)}")
    return reader


def _titles(*fields: str) -> str:
    having = [layout for layout in layouts().values() if any(getattr(layout, field) is not None for field in fields)]
    return ", ".join(sorted(layout.title for layout in having))
