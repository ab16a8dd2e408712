"""What a published layout is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attention_transfer.data.images import Splits

Boxes = dict[Path, tuple[float, float, float, float]]
"""Image file to the box around its object: x and y of the upper left corner, width and height, in pixels.

Pixels are counted from 0. Where there are several objects, the box is around all of them.
"""

Masks = dict[Path, Path]
"""Image file to the file of its mask, which has the image's size."""

Foreground = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]
"""Values of a mask file, (height, width), to where the object is."""


@dataclass(frozen=True)
class Layout:
    """A data set as its official archives unpack.

    Attributes:
        name: short, as in commands.
        title: as its makers call it.
        recognises: whether a folder holds it, whole or with files missing; looks at few names and opens nothing.
        load: the official splits. Raises `UserError` where a file is missing or damaged.
        boxes: boxes of the objects, where there are any.
        masks: mask files, where there are any.
        foreground: how a mask file is read.
    """

    name: str
    title: str
    recognises: Callable[[Path], bool]
    load: Callable[[Path], Splits]
    boxes: Callable[[Path], Boxes] | None = None
    masks: Callable[[Path], Masks] | None = None
    foreground: Foreground | None = None
