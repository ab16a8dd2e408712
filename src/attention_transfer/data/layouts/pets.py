"""Oxford-IIIT Pets: 37 breeds of cats and dogs.

Source: O. M. Parkhi, A. Vedaldi, A. Zisserman and C. V. Jawahar, Cats and Dogs, 2012.
"""

from __future__ import annotations

from pathlib import Path

from attention_transfer.data.layouts.layout import Layout, Masks, Published
from attention_transfer.data.layouts.official_files import (
    Sample,
    by_list,
    damaged,
    folder_with,
    read_rows,
    require,
)

LISTS = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}


def read_pets(home: Path) -> Published:
    """The official training and test images; a class is called as its files are."""
    require(home, ("images", *LISTS.values()))
    lists = {part: home / name for part, name in LISTS.items()}
    return by_list(lists, _listed, lambda file: file.stem.rpartition("_")[0])


def pets_masks(home: Path) -> Masks:
    """A trimap for each image: 1 is the animal, 2 is not, 3 is the border between them."""
    require(home, ("annotations/trimaps",))
    files = [file for name in LISTS.values() for file, _ in _listed(home / name)]
    return {file: home / "annotations" / "trimaps" / f"{file.stem}.png" for file in files}


def _listed(source: Path) -> list[Sample]:
    """Image files of a list, and their classes; the file counts these from 1."""
    samples = []
    for image, number, *_ in read_rows(source, 4):
        if not number.isdecimal() or number == "0":
            raise damaged(source, f"{number!r} is not a class number")
        samples.append((source.parent.parent / "images" / f"{image}.jpg", int(number) - 1))
    return samples


PETS = Layout(
    name="pets",
    title="Oxford-IIIT Pets",
    find=folder_with("images", *LISTS.values(), "annotations/trimaps", least=3, inside=("oxford-iiit-pet",)),
    read=read_pets,
    masks=pets_masks,
    foreground=lambda values: values == 1,
)
