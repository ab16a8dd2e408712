"""What a published layout is. Each file of this folder holds one; another package registers its own by an entry point.

The group is `attention_transfer.layouts`; the entry point names a `Layout`, or several in a tuple:

    [project.entry-points."attention_transfer.layouts"]
    leaves = "my_package.leaves:LEAVES"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attention_transfer.data.images import Split, Splits
from attention_transfer.data.splits import make_splits
from attention_transfer.errors import UserError

Box = tuple[float, float, float, float]
"""x and y of the upper left corner, width and height, in pixels, which are counted from 0."""

Boxes = dict[Path, Box]
"""Image file to the box around its object; where there are several objects, around all of them."""

Masks = dict[Path, Path]
"""Image file to the file of its mask, which has the image's size."""

Foreground = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]
"""Values of a mask file, (height, width), to where the object is."""


@dataclass(frozen=True)
class Published:
    """A data set as it is published.

    Attributes:
        classes: class names, in the order of the labels.
        parts: the splits that there are: "train", and perhaps "validation" and "test".
        notes: what a reader should know, a sentence each.
    """

    classes: Sequence[str]
    parts: Mapping[str, Split]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Layout:
    """A data set as its official archives unpack.

    Attributes:
        name: short, as in commands.
        title: as its makers call it.
        find: the folder that holds it, which is the one given or lies in it; `None` where it is not there. It finds
            the data set also where files are missing, looks at few names and opens nothing.
        read: the official splits, of that folder. Raises `UserError` where a file is missing or damaged.
        boxes: boxes of the objects, of that folder, where there are any.
        masks: mask files, of that folder, where there are any.
        foreground: how a mask file is read.
        segmentation: images and masks of the "train" or "val" split of a segmentation task, of that folder: each value
            of a mask but 0 and 255 (void) is an object.
    """

    name: str
    title: str
    find: Callable[[Path], Path | None]
    read: Callable[[Path], Published]
    boxes: Callable[[Path], Boxes] | None = None
    masks: Callable[[Path], Masks] | None = None
    foreground: Foreground | None = None
    segmentation: Callable[[Path, Literal["train", "val"]], list[tuple[Path, Path]]] | None = None

    def home(self, path: Path) -> Path:
        """The folder that holds the data set.

        Raises:
            UserError: there is none.
        """
        home = self.find(path)
        if home is None:
            raise UserError(f"{path} does not hold {self.title}; name the folder that its archive unpacks to")
        return home

    def load(self, path: Path, *, strict: bool = False) -> Splits:
        """The splits: official ones where there are any, others cut off the training images.

        Raises:
            UserError: the folder does not hold the data set, or files are missing or damaged.
        """
        found = self.read(self.home(path))
        return make_splits(self.name, found.classes, found.parts, notes=found.notes, strict=strict)
