"""Stanford Cars: 196 makes, models and years.

Source: J. Krause, M. Stark, J. Deng and L. Fei-Fei, 3D Object Representations for Fine-Grained Categorization, 2013.
Both published forms are read: `devkit/`, `cars_train/` and `cars_test/`, or `cars_annos.mat` with all images together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attention_transfer.data.layouts.layout import Boxes, Layout, Published
from attention_transfer.data.layouts.official_files import (
    AGAIN,
    box_from_one,
    folder_with,
    labelled,
    read_mat,
    require,
    to_index,
)
from attention_transfer.errors import UserError

MARKS = ("cars_train", "cars_test", "devkit/cars_meta.mat", "devkit/cars_train_annos.mat")
TOGETHER = "cars_annos.mat"
LABELLED = "cars_test_annos_withlabels.mat"
CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")

Annotated = tuple[Path, list[tuple[Path, Any]]]
"""A file with annotations; each image file with its annotation."""


def read_cars(home: Path) -> Published:
    """The official training and test images."""
    together = (home / TOGETHER).exists()
    if not together:
        require(home, MARKS)
    names = home / TOGETHER if together else home / "devkit" / "cars_meta.mat"
    classes = [str(name) for name in read_mat(names, "class_names")]
    parts = {
        part: labelled([(file, to_index(row["class"], classes, source)) for file, row in rows], source)
        for part, (source, rows) in _annotations(home, ("class",)).items()
    }
    return Published(classes, parts)


def cars_boxes(home: Path) -> Boxes:
    """A box for each image."""
    return {
        file: box_from_one([row[corner] for corner in CORNERS], f"{source} is damaged at {file.name}")
        for source, rows in _annotations(home, CORNERS).values()
        for file, row in rows
    }


def _annotations(home: Path, fields: tuple[str, ...]) -> dict[str, Annotated]:
    """Of training and test images."""
    if not (home / TOGETHER).exists():
        return {part: _annotated(home, part, fields) for part in ("train", "test")}
    parts: dict[str, Annotated] = {part: (home / TOGETHER, []) for part in ("train", "test")}
    for row in read_mat(home / TOGETHER, "annotations", ("relative_im_path", "test", *fields)):
        parts["test" if row["test"] else "train"][1].append((home / str(row["relative_im_path"]), row))
    return parts


def _annotated(home: Path, part: str, fields: tuple[str, ...]) -> Annotated:
    source = home / "devkit" / "cars_train_annos.mat" if part == "train" else _test_annotations(home)
    folder = home / f"cars_{part}"
    if (folder / folder.name).is_dir():  # some copies have the folder twice, one in the other
        folder = folder / folder.name
    rows = read_mat(source, "annotations", ("fname", *(field for field in fields if field != "class")))
    if "class" not in (rows.dtype.names or ()):
        raise UserError(f"{source} has no labels; put {LABELLED}, which has, into {home} or {home / 'devkit'}")
    return source, [(folder / str(row["fname"]), row) for row in rows]


def _test_annotations(home: Path) -> Path:
    places = (home / LABELLED, home / "devkit" / LABELLED, home / "devkit" / "cars_test_annos.mat")
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise UserError(f"{places[1]} is missing; {AGAIN}")
    return found


def _find(path: Path) -> Path | None:
    parted = folder_with(*MARKS, least=3, inside=("stanford_cars",))
    together = folder_with(TOGETHER, "car_ims", least=2, inside=("stanford_cars",))
    return parted(path) or together(path)


CARS = Layout(name="cars", title="Stanford Cars", find=_find, read=read_cars, boxes=cars_boxes)
