"""FGVC-Aircraft: 100 variants of aircraft.

Source: S. Maji, J. Kannala, E. Rahtu, M. Blaschko and A. Vedaldi, Fine-Grained Visual Classification of Aircraft, 2013.
"""

from __future__ import annotations

from pathlib import Path

from attention_transfer.data.cut import complete
from attention_transfer.data.images import Split, Splits
from attention_transfer.data.layouts.layout import Boxes, Layout
from attention_transfer.data.layouts.reading import (
    AGAIN,
    find_home,
    labelled,
    read_lines,
    read_rows,
    require,
    require_home,
)
from attention_transfer.errors import UserError

LISTS = ("images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt")

NOTES = (
    "The published validation split is used for selection; papers train on it too.",
    "Each image ends in a banner of 20 pixels with its copyright; it is kept.",
)


def load_aircraft(path: Path) -> Splits:
    """The official training, validation and test images, by variant."""
    home = require_home(_home(path), path, AIRCRAFT.title)
    require(home, ("variants.txt", *LISTS, "images"))
    classes = read_lines(home / "variants.txt")
    index = {name: label for label, name in enumerate(classes)}
    train, validation, test = (_part(home, home / name, index) for name in LISTS)
    return complete(AIRCRAFT.name, classes, train=train, validation=validation, test=test, notes=NOTES)


def aircraft_boxes(path: Path) -> Boxes:
    """A box for each image; the file counts pixels from 1 and has the last pixel in the box."""
    home = require_home(_home(path), path, AIRCRAFT.title)
    boxes: Boxes = {}
    for name, *corners in read_rows(home / "images_box.txt", 5):
        try:
            x, y, right, bottom = map(float, corners)
        except ValueError as error:
            raise UserError(f"{home / 'images_box.txt'} is damaged at {name}; {AGAIN}") from error
        boxes[home / "images" / f"{name}.jpg"] = (x - 1, y - 1, right - x + 1, bottom - y + 1)
    return boxes


def _part(home: Path, source: Path, index: dict[str, int]) -> Split:
    rows = read_rows(source, 2)
    unknown = next((variant for _, variant in rows if variant not in index), None)
    if unknown is not None:
        raise UserError(f"{source} is damaged: {unknown!r} is not a variant in variants.txt; {AGAIN}")
    return labelled([(home / "images" / f"{name}.jpg", index[variant]) for name, variant in rows], source)


def _home(path: Path) -> Path | None:
    return find_home(path, ("data", "fgvc-aircraft-2013b/data"), ("variants.txt", "images_box.txt", *LISTS), least=3)


AIRCRAFT = Layout(
    name="aircraft",
    title="FGVC-Aircraft",
    recognises=lambda path: _home(path) is not None,
    load=load_aircraft,
    boxes=aircraft_boxes,
)
