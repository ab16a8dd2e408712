"""FGVC-Aircraft: 100 variants of aircraft.

Source: S. Maji, J. Kannala, E. Rahtu, M. Blaschko and A. Vedaldi, Fine-Grained Visual Classification of Aircraft, 2013.
"""

from __future__ import annotations

from pathlib import Path

from attention_transfer.data.images import Split
from attention_transfer.data.layouts.layout import Boxes, Layout, Published
from attention_transfer.data.layouts.official_files import (
    box_from_one,
    damaged,
    folder_with,
    labelled,
    read_lines,
    read_rows,
    require,
)

LISTS = {
    "train": "images_variant_train.txt",
    "validation": "images_variant_val.txt",
    "test": "images_variant_test.txt",
}

NOTES = (
    "The published validation split is used for selection; papers train on it too.",
    "Each image ends in a banner of 20 pixels with its copyright; it is kept.",
)


def read_aircraft(home: Path) -> Published:
    """The official training, validation and test images, by variant."""
    require(home, ("variants.txt", *LISTS.values(), "images"))
    classes = read_lines(home / "variants.txt")
    index = {name: label for label, name in enumerate(classes)}
    return Published(classes, {part: _part(home, home / name, index) for part, name in LISTS.items()}, NOTES)


def aircraft_boxes(home: Path) -> Boxes:
    """A box for each image."""
    source = home / "images_box.txt"
    return {
        home / "images" / f"{name}.jpg": box_from_one(corners, f"{source} is damaged at {name}")
        for name, *corners in read_rows(source, 5)
    }


def _part(home: Path, source: Path, index: dict[str, int]) -> Split:
    rows = read_rows(source, 2)
    unknown = next((variant for _, variant in rows if variant not in index), None)
    if unknown is not None:
        raise damaged(source, f"{unknown!r} is not a variant in variants.txt")
    return labelled([(home / "images" / f"{name}.jpg", index[variant]) for name, variant in rows], source)


AIRCRAFT = Layout(
    name="aircraft",
    title="FGVC-Aircraft",
    find=folder_with(
        "variants.txt",
        "images_box.txt",
        *LISTS.values(),
        least=3,
        inside=("data", "fgvc-aircraft-2013b/data"),
    ),
    read=read_aircraft,
    boxes=aircraft_boxes,
)
