"""Stanford Dogs: 120 breeds.

Source: A. Khosla, N. Jayadevaprakash, B. Yao and L. Fei-Fei, Novel Dataset for Fine-Grained Image Categorization, 2011.
"""

from __future__ import annotations

from pathlib import Path

from attention_transfer.data.layouts.layout import Boxes, Layout, Published
from attention_transfer.data.layouts.official_files import (
    Sample,
    by_list,
    damaged,
    folder_with,
    read_mat,
    read_xml_box,
    require,
)

LISTS = {"train": "train_list.mat", "test": "test_list.mat"}


def read_dogs(home: Path) -> Published:
    """The official training and test images; a class is called by its breed."""
    lists = {part: _list_file(home, name) for part, name in LISTS.items()}
    return by_list(lists, _listed, lambda file: file.parent.name.partition("-")[2] or file.parent.name)


def dogs_boxes(home: Path) -> Boxes:
    """For each image the box around all of its dogs."""
    require(home, ("Annotation",))
    files = [file for name in LISTS.values() for file, _ in _listed(_list_file(home, name))]
    return {file: read_xml_box(home / "Annotation" / file.parent.name / file.stem) for file in files}


def _listed(source: Path) -> list[Sample]:
    """Image files of a list, and their classes; the file counts these from 1."""
    home = source.parent.parent if source.parent.name == "lists" else source.parent
    files, labels = read_mat(source, "file_list"), read_mat(source, "labels")
    if len(files) != len(labels):
        raise damaged(source, f"{len(files)} files, but {len(labels)} labels")
    return [(home / "Images" / str(file), int(label) - 1) for file, label in zip(files, labels, strict=True)]


def _list_file(home: Path, name: str) -> Path:
    """lists.tar makes no folder, so that the lists may lie beside the images."""
    return home / name if (home / name).exists() else home / "lists" / name


def _find(path: Path) -> Path | None:
    lists = [name for name in LISTS.values() if (path / name).exists()] or [f"lists/{name}" for name in LISTS.values()]
    return folder_with("Images", "Annotation", *lists, least=2)(path)


DOGS = Layout(name="dogs", title="Stanford Dogs", find=_find, read=read_dogs, boxes=dogs_boxes)
