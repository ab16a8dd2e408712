"""Stanford Cars: 196 makes, models and years.

Source: J. Krause, M. Stark, J. Deng and L. Fei-Fei, 3D Object Representations for Fine-Grained Categorization, 2013.
Both published forms are read: `devkit/`, `cars_train/` and `cars_test/`, or `cars_annos.mat` with all images together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attention_transfer.data.cut import complete
from attention_transfer.data.images import Splits
from attention_transfer.data.layouts.layout import Boxes, Layout
from attention_transfer.data.layouts.reading import (
    AGAIN,
    find_home,
    labelled,
    read_mat,
    require,
    require_home,
    to_index,
)
from attention_transfer.errors import UserError

MARKS = ("cars_train", "cars_test", "devkit/cars_meta.mat", "devkit/cars_train_annos.mat")
LABELLED = "cars_test_annos_withlabels.mat"
CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def load_cars(path: Path) -> Splits:
    """The official training and test images."""
    home = require_home(_home(path), path, CARS.title)
    if _together(home):
        source = home / "cars_annos.mat"
        classes = [str(name) for name in read_mat(source, "class_names")]
        rows = read_mat(source, "annotations", ("relative_im_path", "class", "test"))
        samples = [(home / str(r["relative_im_path"]), to_index(r["class"], classes, source), r["test"]) for r in rows]
        train, test = (labelled([(f, k) for f, k, t in samples if bool(t) == part], source) for part in (False, True))
        return complete(CARS.name, classes, train=train, test=test)
    require(home, MARKS)
    classes = [str(name) for name in read_mat(home / "devkit" / "cars_meta.mat", "class_names")]
    train, test = (
        labelled([(file, to_index(row["class"], classes, source)) for file, row in rows], source)
        for source, rows in (_annotated(home, "train"), _annotated(home, "test"))
    )
    return complete(CARS.name, classes, train=train, test=test)


def cars_boxes(path: Path) -> Boxes:
    """A box for each image; the files count pixels from 1 and have the last pixel in the box."""
    home = require_home(_home(path), path, CARS.title)
    if _together(home):
        rows = read_mat(home / "cars_annos.mat", "annotations", ("relative_im_path", *CORNERS))
        annotated = [(home / str(row["relative_im_path"]), row) for row in rows]
    else:
        annotated = _annotated(home, "train", CORNERS)[1] + _annotated(home, "test", CORNERS)[1]
    boxes: Boxes = {}
    for file, row in annotated:
        x, y, right, bottom = (float(row[corner]) for corner in CORNERS)
        boxes[file] = (x - 1, y - 1, right - x + 1, bottom - y + 1)
    return boxes


def _annotated(home: Path, part: str, fields: tuple[str, ...] = ()) -> tuple[Path, list[tuple[Path, Any]]]:
    """The file with the annotations of a part; each image file with its annotation."""
    source = home / "devkit" / "cars_train_annos.mat" if part == "train" else _test_annotations(home)
    folder = home / f"cars_{part}"
    if (folder / folder.name).is_dir():  # some copies have the folder twice, one in the other
        folder = folder / folder.name
    rows = read_mat(source, "annotations", ("fname", *fields))
    if "class" not in (rows.dtype.names or ()):
        raise UserError(f"{source} has no labels; put {LABELLED}, which has, into {home} or {home / 'devkit'}")
    return source, [(folder / str(row["fname"]), row) for row in rows]


def _test_annotations(home: Path) -> Path:
    places = (home / LABELLED, home / "devkit" / LABELLED, home / "devkit" / "cars_test_annos.mat")
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise UserError(f"{places[1]} is missing; {AGAIN}")
    return found


def _together(home: Path) -> bool:
    return (home / "cars_annos.mat").exists()


def _home(path: Path) -> Path | None:
    folders = ("stanford_cars",)
    home = find_home(path, folders, MARKS, least=3)
    return home or find_home(path, folders, ("cars_annos.mat", "car_ims"), least=2)


CARS = Layout(
    name="cars",
    title="Stanford Cars",
    recognises=lambda path: _home(path) is not None,
    load=load_cars,
    boxes=cars_boxes,
)
