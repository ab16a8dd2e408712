"""CUB-200-2011: 200 bird species.

Source: C. Wah, S. Branson, P. Welinder, P. Perona and S. Belongie, The Caltech-UCSD Birds-200-2011 Dataset, 2011.
"""

from __future__ import annotations

from pathlib import Path

from attention_transfer.data.layouts.layout import Boxes, Layout, Masks, Published
from attention_transfer.data.layouts.official_files import (
    damaged,
    folder_with,
    labelled,
    read_joined,
    read_rows,
    require,
    to_index,
)
from attention_transfer.errors import UserError

FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def read_cub(home: Path) -> Published:
    """The official training and test images; class names with their number, as published."""
    require(home, FILES)
    numbered = dict(read_rows(home / "classes.txt", 2))
    numbers = [str(number) for number in range(1, len(numbered) + 1)]
    if set(numbers) != set(numbered):
        raise damaged(home / "classes.txt", "its classes are not numbered from 1")
    classes = [numbered[number] for number in numbers]
    samples: dict[str, list[tuple[Path, int]]] = {"1": [], "0": []}
    for name, label, flag in read_joined(home, FILES[:3]):
        if flag not in samples:
            raise damaged(home / FILES[2], f"{flag!r} is neither 0 nor 1")
        samples[flag].append((home / "images" / name, to_index(label, classes, home / FILES[1])))
    parts = {"train": samples["1"], "test": samples["0"]}
    return Published(classes, {part: labelled(rows, home / "images.txt") for part, rows in parts.items()})


def cub_boxes(home: Path) -> Boxes:
    """A box for each image, as published."""
    boxes: Boxes = {}
    for name, line in read_joined(home, ("images.txt", "bounding_boxes.txt")):
        try:
            x, y, width, height = map(float, line.split())
        except ValueError as error:
            raise damaged(home / "bounding_boxes.txt", f"{line!r} is not a box") from error
        boxes[home / "images" / name] = (x, y, width, height)
    return boxes


def cub_masks(home: Path) -> Masks:
    """Segmentations, from an archive of their own that is unpacked in the folder or beside it."""
    folder = next((at for at in (home / "segmentations", home.parent / "segmentations") if at.is_dir()), None)
    if folder is None:
        raise UserError(f"{home / 'segmentations'} is missing; unpack segmentations.tgz there")
    names = [Path(name) for (name,) in read_joined(home, ("images.txt",))]
    return {home / "images" / name: folder / name.with_suffix(".png") for name in names}


def _find(path: Path) -> Path | None:
    home = folder_with(*FILES, "bounding_boxes.txt", least=3, inside=("CUB_200_2011",))(path)
    # NABirds has files of the same names, with other contents, and a hierarchy.
    return None if home is None or (home / "hierarchy.txt").exists() else home


CUB = Layout(
    name="cub",
    title="CUB-200-2011",
    find=_find,
    read=read_cub,
    boxes=cub_boxes,
    masks=cub_masks,
    foreground=lambda values: values >= 128,  # 255 times the share of five people who marked the pixel
)
