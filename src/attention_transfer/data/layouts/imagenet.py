"""ImageNet-1K (ILSVRC 2012), and subsets of its classes in the same layout.

Source: O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015. The validation images may lie
in folders of their classes, or flat as published; then one of the files of `_answers` must say what they show.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np

from attention_transfer.data.finder import Finder, counts_in_words
from attention_transfer.data.images import FileImages, Split
from attention_transfer.data.layouts.layout import Boxes, Layout, Published
from attention_transfer.data.layouts.official_files import (
    AGAIN,
    damaged,
    labelled,
    read_lines,
    read_mat,
    read_rows,
    read_xml_box,
    require,
)
from attention_transfer.errors import UserError

CLASSES = 1000
WNID = re.compile(r"n\d{8}")
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SYNSET_LABELS = "imagenet_2012_validation_synset_labels.txt"
INSIDE = (("ILSVRC", "Data", "CLS-LOC"), ("Data", "CLS-LOC"))  # where Kaggle's archive has the images
DEVKIT = Path("ILSVRC2012_devkit_t12") / "data"


def read_imagenet(home: Path) -> Published:
    """The official training images; the validation images are the test split, as papers report them.

    Labels are in the order of the WordNet ids, as everywhere but in the challenge's own files.
    """
    require(home, ("train", "val"))
    wnids = _class_folders(home / "train")
    index = {wnid: label for label, wnid in enumerate(wnids)}
    finder = Finder()
    train = _from_folders(home / "train", index, finder)
    folders = _class_folders(home / "val")
    validation = _from_folders(home / "val", index, finder) if folders else _flat(home, index)
    notes = [f"The folder has {len(wnids)} of the {CLASSES:,} classes."] if len(wnids) != CLASSES else []
    notes += [f"Not used in the class folders: {counts_in_words(finder.left_out)}."] if finder.left_out else []
    return Published(_names(home, wnids), {"train": train, "validation": validation}, notes)


def imagenet_boxes(home: Path) -> Boxes:
    """Boxes around all objects of the class, of the validation images."""
    annotations = _beside(home, Path("Annotations") / "CLS-LOC" / "val")
    if annotations is None:
        raise UserError(f"{home} has no Annotations/CLS-LOC/val; unpack the validation bounding boxes there")
    (files,) = Finder().find([home / "val"])
    return {Path(file): read_xml_box(annotations / f"{Path(file).stem}.xml") for file in files}


def _from_folders(folder: Path, index: dict[str, int], finder: Finder) -> Split:
    wnids = _class_folders(folder)
    if unknown := [wnid for wnid in wnids if wnid not in index]:
        raise UserError(f"{folder / unknown[0]} is a class that train/ does not have; {AGAIN}")
    found = finder.find([folder / wnid for wnid in wnids])
    samples = [(file, index[wnid]) for wnid, files in zip(wnids, found, strict=True) for file in files]
    if empty := [wnid for wnid, files in zip(wnids, found, strict=True) if not files]:
        raise UserError(f"{len(empty)} folders in {folder} have no image (the first: {', '.join(empty[:5])}); {AGAIN}")
    paths, labels = zip(*samples, strict=True)
    return Split(FileImages(paths), np.array(labels, dtype=np.int64))


def _flat(home: Path, index: dict[str, int]) -> Split:
    source, answers = _answers(home)
    unknown = next((wnid for wnid in answers.values() if wnid not in index), None)
    if unknown is not None:
        raise UserError(f"{source} has class {unknown}, which {home / 'train'} does not have; {AGAIN}")
    return labelled([(home / "val" / f"{name}.JPEG", index[wnid]) for name, wnid in answers.items()], source)


def _answers(home: Path) -> tuple[Path, dict[str, str]]:
    """The file that tells the classes of the flat validation images, and the WordNet id of each image's name."""
    solution = _beside(home, Path("LOC_val_solution.csv"))
    if solution is not None:
        rows = [*csv.reader(read_lines(solution))]
        if not rows[1:] or any(len(row) != 2 or not WNID.match(row[1]) for row in rows[1:]):
            raise damaged(solution, "it is not a list of image and class ids")
        return solution, {name: prediction.split()[0] for name, prediction in sorted(rows[1:])}
    synsets = _beside(home, Path(SYNSET_LABELS))
    if synsets is not None:
        return synsets, {_name(n): wnid for n, wnid in enumerate(read_lines(synsets), 1)}
    truth = _beside(home, Path(GROUND_TRUTH)) or _beside(home, DEVKIT / GROUND_TRUTH)
    if truth is not None:
        wnids = _synsets(truth.with_name("meta.mat"))
        lines = read_lines(truth)
        unknown = next((line for line in lines if line not in wnids), None)
        if unknown is not None:
            raise damaged(truth, f"{unknown!r} is not the number of a class in meta.mat")
        return truth, {_name(n): wnids[line] for n, line in enumerate(lines, 1)}
    raise UserError(
        f"the images in {home / 'val'} are not in folders of their classes, and there is no LOC_val_solution.csv, no "
        f"{SYNSET_LABELS} and no {DEVKIT / GROUND_TRUTH}; put one of them into {home}"
    )


def _name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


def _synsets(meta: Path) -> dict[str, str]:
    """The challenge's own class numbers, which are not in the order of the labels, and their WordNet ids."""
    rows = read_mat(meta, "synsets", ("ILSVRC2012_ID", "WNID"))
    return {str(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}


def _names(home: Path, wnids: list[str]) -> list[str]:
    """Words for the classes, with the WordNet id where two have the same; the ids alone where no file has words."""
    mapping = _beside(home, Path("LOC_synset_mapping.txt"))
    if mapping is None:
        return wnids
    words = dict(read_rows(mapping, 2))
    absent = next((wnid for wnid in wnids if wnid not in words), None)
    if absent is not None:
        raise damaged(mapping, f"it has no line for {absent}")
    same = Counter(words[wnid] for wnid in wnids)
    return [words[wnid] if same[words[wnid]] == 1 else f"{words[wnid]} ({wnid})" for wnid in wnids]


def _beside(home: Path, name: Path) -> Path | None:
    """A file in the folder with the images, or in those above it that Kaggle's archive makes."""
    above = next((len(inside) for inside in INSIDE if home.parts[-len(inside) :] == inside), 0)
    folders = (home, *home.parents[:above])
    return next((folder / name for folder in folders if (folder / name).exists()), None)


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if WNID.fullmatch(entry.name) and entry.is_dir())


def _find(path: Path) -> Path | None:
    for home in (path, *(path.joinpath(*inside) for inside in INSIDE)):
        if (home / "train").is_dir() and (home / "val").is_dir():
            first = islice(os.scandir(home / "train"), 20)
            named = any(WNID.fullmatch(entry.name) for entry in first)
            # The official test images have no classes; people's own subsets may have, and these are theirs to report.
            if named and not ((home / "test").is_dir() and _class_folders(home / "test")):
                return home
    return None


IMAGENET = Layout(
    name="imagenet",
    title="ImageNet-1K",
    find=_find,
    read=read_imagenet,
    boxes=imagenet_boxes,
)
