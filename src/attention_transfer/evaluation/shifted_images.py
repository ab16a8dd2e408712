"""Shifted test sets: the variants of ImageNet as published, corrupted images, and any set with the same classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attention_transfer.config.choices import SplitName
from attention_transfer.data import Split, Splits, find_source, load_data
from attention_transfer.data.class_folders import load_class_folders
from attention_transfer.data.corruptions import SEVERITIES
from attention_transfer.data.finder import subfolders
from attention_transfer.data.layouts.imagenet import IMAGENET
from attention_transfer.data.splits import SPLIT_NAMES, first_five
from attention_transfer.errors import UserError, raise_all

_SUBSETS = {"ImageNet-A": "imagenet_a_synsets.txt", "ImageNet-R": "imagenet_r_synsets.txt"}


@dataclass(frozen=True)
class ShiftedSet:
    """Images of a data set's classes, from elsewhere.

    Attributes:
        name: as it is shown.
        split: the images; labels are those of the data set.
        classes: the data set's classes that it has, in order.
        corruption: of a tree of corrupted images.
        severity: likewise.
    """

    name: str
    split: Split
    classes: NDArray[np.int64]
    corruption: str | None = None
    severity: int | None = None


def shifted_sets(specs: Sequence[str], splits: Splits, split: SplitName) -> list[ShiftedSet]:
    """Find the shifted sets that are named, and the data set's class of each image.

    Args:
        specs: folders of class folders, which are called as the data set's classes, for ImageNet also by WordNet id or
            by number (ImageNet-V2); trees CORRUPTION/SEVERITY/CLASS (ImageNet-C); or whatever `load_data` loads.
        splits: the data set; its classes are what labels mean.
        split: which images, of a set that has splits.

    Raises:
        UserError: a set is not there or empty, or has classes that the data set lacks; every such set is named.
    """
    index, found, problems = _index_of(splits), list[ShiftedSet](), list[str]()
    for spec in specs:
        try:
            found += [_labelled(each, names, index, splits) for each, names in _read(spec, split)]
        except UserError as error:
            problems += str(error).splitlines()
    raise_all(problems)
    return found


def _read(spec: str, split: SplitName) -> Iterator[tuple[ShiftedSet, Sequence[str]]]:
    """The sets of one name, with the names of their own classes, which are what labels mean so far."""
    path = Path(spec).expanduser()
    if not path.is_dir():
        find_source(spec)  # which says it best where there is no such data set
        known = load_data(spec)
        yield _unlabelled(spec, known.parts[split]), known.classes
        return
    if corruptions := _corruptions(path):
        for folder in corruptions:
            for severity in sorted(int(inner.name) for inner in subfolders(folder)):
                part, names = load_class_folders(folder / str(severity))
                named = _unlabelled(f"{path.name}: {folder.name} {severity}", part)
                yield replace(named, corruption=folder.name, severity=severity), names
        return
    part, names = load_class_folders(_part(path, split))
    yield _unlabelled(_published(path, names), part), names


def _unlabelled(name: str, split: Split) -> ShiftedSet:
    return ShiftedSet(name, split, np.unique(split.labels))


def _labelled(found: ShiftedSet, names: Sequence[str], index: Mapping[str, int], splits: Splits) -> ShiftedSet:
    """The set with the data set's labels.

    Raises:
        UserError: it has no images, or classes that the data set lacks.
    """
    if not len(found.split):
        raise UserError(f"{found.name} holds no images; fill it, or leave it out of --shift")
    if unknown := [name for name in names if name not in index]:
        raise UserError(
            f"{len(unknown)} of the {len(names)} classes of {found.name} are not among those of {splits.name} "
            f"({first_five(unknown)}); rename these folders as the classes are called, or choose the data set that "
            "they belong to with --data"
        )
    place = np.array([index[name] for name in names])
    labels = place[found.split.labels]
    return replace(found, split=replace(found.split, labels=labels), classes=np.unique(labels))


def _index_of(splits: Splits) -> dict[str, int]:
    """The data set's classes by name; those of ImageNet by WordNet id and number, too."""
    index = {name: label for label, name in enumerate(splits.classes)}
    wnids = imagenet_wnids()
    if len(index) == len(wnids) and (splits.name == IMAGENET.name or index.keys() == {*wnids}):
        index |= {wnid: label for label, wnid in enumerate(wnids)}
        index |= {str(label): label for label in range(len(wnids))}
    return index


def imagenet_wnids() -> list[str]:
    """The WordNet ids of ImageNet's 1,000 classes, in the order of their numbers."""
    from timm.data import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


def imagenet_subset(name: str) -> frozenset[str]:
    """The WordNet ids of the 200 classes of "ImageNet-A" or "ImageNet-R", as timm has them."""
    return frozenset(files("timm").joinpath("data", "_info", _SUBSETS[name]).read_text(encoding="utf-8").split())


def _published(path: Path, names: Sequence[str]) -> str:
    """What a folder is called: the published name, where it has the published classes.

    Raises:
        UserError: it is called as a published set, and lacks some of its classes.
    """
    plain = re.sub(r"[\W_]", "", path.name.lower())
    for title in _SUBSETS:
        meant = imagenet_subset(title)
        if meant == {*names}:
            return title
        if plain == re.sub(r"\W", "", title.lower()) and {*names} < meant:
            raise UserError(
                f"{path} has {len(names)} of the {len(meant)} classes of {title}; unpack its archive again, or rename "
                "the folder if a part of it is meant"
            )
    return path.name


def _corruptions(path: Path) -> list[Path]:
    """The folders of corruptions, which hold those of severities: the path itself, below it, or below groups in it."""
    inner = subfolders(path)
    levels = ([path], inner, [deeper for folder in inner for deeper in subfolders(folder)])
    return next((level for level in levels if level and all(map(_has_severities, level))), [])


def _has_severities(folder: Path) -> bool:
    inner = subfolders(folder)
    return bool(inner) and all(each.name in map(str, SEVERITIES) and bool(subfolders(each)) for each in inner)


def _part(path: Path, split: SplitName) -> Path:
    """The folder of the split, where a folder has such."""
    parts = {SPLIT_NAMES.get(folder.name.lower()): folder for folder in subfolders(path)}
    if not parts or None in parts:
        return path
    if split not in parts:
        raise UserError(f"{path} has no {split} split, but {' and '.join(map(str, parts))}; choose one with --split")
    return parts[split]
