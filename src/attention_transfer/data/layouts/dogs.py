"""Stanford Dogs: 120 breeds.

Source: A. Khosla, N. Jayadevaprakash, B. Yao and L. Fei-Fei, Novel Dataset for Fine-Grained Image Categorization, 2011.
"""

from __future__ import annotations

from pathlib import Path

from attention_transfer.data.cut import complete
from attention_transfer.data.images import Splits
from attention_transfer.data.layouts.layout import Boxes, Layout
from attention_transfer.data.layouts.reading import (
    AGAIN,
    find_home,
    labelled,
    read_mat,
    read_xml_box,
    require,
    require_home,
)
from attention_transfer.errors import UserError

LISTS = ("train_list.mat", "test_list.mat")


def load_dogs(path: Path) -> Splits:
    """The official training and test images; a class is called by its breed."""
    home = require_home(_home(path), path, DOGS.title)
    listed = {name: _listed(home, name) for name in LISTS}
    folders = {label: file.parent.name for rows in listed.values() for file, label in rows}
    if sorted(folders) != list(range(len(folders))):
        raise UserError(f"{_list_file(home, LISTS[0])} is damaged: classes are missing; {AGAIN}")
    classes = [folders[label].partition("-")[2] or folders[label] for label in sorted(folders)]
    train, test = (labelled(rows, _list_file(home, name)) for name, rows in listed.items())
    return complete(DOGS.name, classes, train=train, test=test)


def dogs_boxes(path: Path) -> Boxes:
    """For each image the box around all of its dogs."""
    home = require_home(_home(path), path, DOGS.title)
    require(home, ("Annotation",))
    files = [file for name in LISTS for file, _ in _listed(home, name)]
    return {file: read_xml_box(home / "Annotation" / file.parent.name / file.stem) for file in files}


def _listed(home: Path, name: str) -> list[tuple[Path, int]]:
    """Image files of a list, and their classes; the file counts these from 1."""
    source = _list_file(home, name)
    files, labels = read_mat(source, "file_list"), read_mat(source, "labels")
    if len(files) != len(labels):
        raise UserError(f"{source} is damaged: {len(files)} files, but {len(labels)} labels; {AGAIN}")
    return [(home / "Images" / str(file), int(label) - 1) for file, label in zip(files, labels, strict=True)]


def _list_file(home: Path, name: str) -> Path:
    """lists.tar makes no folder, so that the lists may lie beside the images."""
    return home / name if (home / name).exists() else home / "lists" / name


def _home(path: Path) -> Path | None:
    lists = [name for name in LISTS if (path / name).exists()] or [f"lists/{name}" for name in LISTS]
    return find_home(path, (), ("Images", "Annotation", *lists), least=2)


DOGS = Layout(
    name="dogs",
    title="Stanford Dogs",
    recognises=lambda path: _home(path) is not None,
    load=load_dogs,
    boxes=dogs_boxes,
)
