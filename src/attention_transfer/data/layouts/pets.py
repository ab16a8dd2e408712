"""Oxford-IIIT Pets: 37 breeds of cats and dogs.

Source: O. M. Parkhi, A. Vedaldi, A. Zisserman and C. V. Jawahar, Cats and Dogs, 2012.
"""

from __future__ import annotations

from pathlib import Path

from attention_transfer.data.cut import complete
from attention_transfer.data.images import Splits
from attention_transfer.data.layouts.layout import Layout, Masks
from attention_transfer.data.layouts.reading import (
    AGAIN,
    find_home,
    labelled,
    read_rows,
    require,
    require_home,
)
from attention_transfer.errors import UserError

LISTS = ("trainval.txt", "test.txt")


def load_pets(path: Path) -> Splits:
    """The official training and test images; a class is called as its files are."""
    home = require_home(_home(path), path, PETS.title)
    require(home, ("images", *(f"annotations/{name}" for name in LISTS)))
    listed = [_listed(home, name) for name in LISTS]
    names = {label: file.stem.rpartition("_")[0] for rows in listed for file, label in rows}
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{home / 'annotations' / LISTS[0]} is damaged: classes are missing; {AGAIN}")
    train, test = (labelled(rows, home / "annotations" / name) for rows, name in zip(listed, LISTS, strict=True))
    return complete(PETS.name, [names[label] for label in sorted(names)], train=train, test=test)


def pets_masks(path: Path) -> Masks:
    """A trimap for each image: 1 is the animal, 2 is not, 3 is the border between them."""
    home = require_home(_home(path), path, PETS.title)
    require(home, ("annotations/trimaps",))
    files = [file for name in LISTS for file, _ in _listed(home, name)]
    return {file: home / "annotations" / "trimaps" / f"{file.stem}.png" for file in files}


def _listed(home: Path, name: str) -> list[tuple[Path, int]]:
    """Image files of a list, and their classes; the file counts these from 1."""
    source = home / "annotations" / name
    samples = []
    for image, number, *_ in read_rows(source, 4):
        if not number.isdecimal() or number == "0":
            raise UserError(f"{source} is damaged: {number!r} is not a class number; {AGAIN}")
        samples.append((home / "images" / f"{image}.jpg", int(number) - 1))
    return samples


def _home(path: Path) -> Path | None:
    marks = ("images", "annotations/trainval.txt", "annotations/test.txt", "annotations/trimaps")
    return find_home(path, ("oxford-iiit-pet",), marks, least=3)


PETS = Layout(
    name="pets",
    title="Oxford-IIIT Pets",
    recognises=lambda path: _home(path) is not None,
    load=load_pets,
    masks=pets_masks,
    foreground=lambda values: values == 1,
)
