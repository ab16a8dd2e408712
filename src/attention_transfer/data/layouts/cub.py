"""CUB-200-2011: 200 bird species.

Source: C. Wah, S. Branson, P. Welinder, P. Perona and S. Belongie, The Caltech-UCSD Birds-200-2011 Dataset, 2011.
"""

from __future__ import annotations

from pathlib import Path

from attention_transfer.data.cut import complete
from attention_transfer.data.images import Splits
from attention_transfer.data.layouts.layout import Boxes, Layout, Masks
from attention_transfer.data.layouts.reading import (
    AGAIN,
    find_home,
    labelled,
    read_joined,
    read_rows,
    require,
    require_home,
    to_index,
)
from attention_transfer.errors import UserError

FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def load_cub(path: Path) -> Splits:
    """The official training and test images; class names with their number, as published."""
    home = require_home(_home(path), path, CUB.title)
    require(home, FILES)
    numbered = dict(read_rows(home / "classes.txt", 2))
    numbers = [str(number) for number in range(1, len(numbered) + 1)]
    if set(numbers) != set(numbered):
        raise UserError(f"{home / 'classes.txt'} is damaged: its classes are not numbered from 1; {AGAIN}")
    classes = [numbered[number] for number in numbers]
    parts: dict[str, list[tuple[Path, int]]] = {"1": [], "0": []}
    for name, label, part in read_joined(home, FILES[:3]):
        if part not in parts:
            raise UserError(f"{home / FILES[2]} is damaged: {part!r} is neither 0 nor 1; {AGAIN}")
        parts[part].append((home / "images" / name, to_index(label, classes, home / FILES[1])))
    train, test = (labelled(parts[part], home / "images.txt") for part in ("1", "0"))
    return complete(CUB.name, classes, train=train, test=test)


def cub_boxes(path: Path) -> Boxes:
    """A box for each image, as published."""
    home = require_home(_home(path), path, CUB.title)
    boxes: Boxes = {}
    for name, line in read_joined(home, ("images.txt", "bounding_boxes.txt")):
        try:
            x, y, width, height = map(float, line.split())
        except ValueError as error:
            raise UserError(f"{home / 'bounding_boxes.txt'} is damaged: {line!r} is not a box; {AGAIN}") from error
        boxes[home / "images" / name] = (x, y, width, height)
    return boxes


def cub_masks(path: Path) -> Masks:
    """Segmentations, from an archive of their own that is unpacked in the folder or beside it."""
    home = require_home(_home(path), path, CUB.title)
    folder = next((at for at in (home / "segmentations", home.parent / "segmentations") if at.is_dir()), None)
    if folder is None:
        raise UserError(f"{home / 'segmentations'} is missing; unpack segmentations.tgz there")
    names = [Path(name) for (name,) in read_joined(home, ("images.txt",))]
    return {home / "images" / name: folder / name.with_suffix(".png") for name in names}


def _home(path: Path) -> Path | None:
    home = find_home(path, ("CUB_200_2011",), (*FILES, "bounding_boxes.txt"), least=3)
    # NABirds has files of the same names, with other contents, and a hierarchy.
    return None if home is None or (home / "hierarchy.txt").exists() else home


CUB = Layout(
    name="cub",
    title="CUB-200-2011",
    recognises=lambda path: _home(path) is not None,
    load=load_cub,
    boxes=cub_boxes,
    masks=cub_masks,
    foreground=lambda values: values >= 128,  # 255 times the share of five people who marked the pixel
)
