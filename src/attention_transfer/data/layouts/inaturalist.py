"""iNaturalist 2017, 2018 and 2019: species, with few images of most.

Source: G. Van Horn et al., The iNaturalist Species Classification and Detection Dataset, 2018, and the competitions
of the years after it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attention_transfer.data.images import Split
from attention_transfer.data.layouts.layout import Box, Boxes, Layout, Published
from attention_transfer.data.layouts.official_files import around, damaged, folder_with, labelled, read_json

Record = dict[str, Any]


def read_inaturalist(year: int, home: Path) -> Published:
    """The official training images; the validation images are the test split, as papers report them."""
    source = home / f"train{year}.json"
    content = _coco(source)
    names = _names(home, _records(source, content, "categories", ("id", "name")))
    index = {number: label for label, number in enumerate(names)}
    train = _part(home, source, content, index)
    published = home / f"val{year}.json"
    validation = _part(home, published, _coco(published), index)
    return Published(list(names.values()), {"train": train, "validation": validation})


def inaturalist_boxes(year: int, home: Path) -> Boxes:
    """Boxes around all individuals, of the images for which there are any; published for 2017 only."""
    boxes: Boxes = {}
    for part in ("train", "val"):
        source = home / f"{part}_{year}_bboxes.json"
        content = _coco(source)
        files = _files(home, source, content)
        corners: dict[Any, list[Box]] = {}
        for record in _records(source, content, "annotations", ("image_id", "bbox")):
            x, y, width, height = record["bbox"]
            corners.setdefault(record["image_id"], []).append((x, y, x + width, y + height))
        boxes |= {files[image]: around(np.array(found, dtype=np.float64)) for image, found in corners.items()}
    return boxes


def _part(home: Path, source: Path, content: Record, index: dict[Any, int]) -> Split:
    files = _files(home, source, content)
    samples = []
    for record in _records(source, content, "annotations", ("image_id", "category_id")):
        image, category = record["image_id"], record["category_id"]
        if image not in files or category not in index:
            raise damaged(source, f"it has no image {image} or no category {category}")
        samples.append((files[image], index[category]))
    return labelled(samples, source)


def _names(home: Path, categories: list[Record]) -> dict[Any, str]:
    """Names of the categories, in the order of their numbers; those of 2018 came later, in a file of their own."""
    names = {record["id"]: str(record["name"]) for record in categories}
    later = home / "categories.json"
    if later.exists():
        revealed = _records(later, {"categories": read_json(later)}, "categories", ("id", "name"))
        names |= {record["id"]: str(record["name"]) for record in revealed if record["id"] in names}
    return dict(sorted(names.items()))


def _coco(source: Path) -> Record:
    content: Record = read_json(source, ("images", "annotations", "categories"))
    return content


def _files(home: Path, source: Path, content: Record) -> dict[Any, Path]:
    return {record["id"]: home / record["file_name"] for record in _records(source, content, "images", _IMAGE)}


def _records(source: Path, content: Record, key: str, fields: tuple[str, ...]) -> list[Record]:
    """The objects of a list, each with these fields."""
    records = content[key]
    if not isinstance(records, list) or not all(isinstance(r, dict) and r.keys() >= set(fields) for r in records):
        raise damaged(source, f"{key!r} is not a list of objects with {', '.join(fields)}")
    return records


_IMAGE = ("id", "file_name")

INATURALIST = tuple(
    Layout(
        name=f"inat{year}",
        title=f"iNaturalist {year}",
        find=folder_with(f"train{year}.json", f"val{year}.json", least=1),
        read=partial(read_inaturalist, year),
        boxes=partial(inaturalist_boxes, year) if year == 2017 else None,
    )
    for year in (2017, 2018, 2019)
)
