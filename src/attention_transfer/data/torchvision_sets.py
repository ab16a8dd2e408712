"""Classification sets of torchvision, by the names of its classes; what is not there is not downloaded."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets
from torchvision.datasets.folder import make_dataset

from attention_transfer.data.images import ArrayImages, FileImages, Split, Splits
from attention_transfer.data.layouts.registry import layouts
from attention_transfer.data.splits import make_splits
from attention_transfer.errors import UserError, nearest

ROOT = "data"
"""Where sets are looked for, if nothing else is said."""

Arguments = Mapping[str, Any]


def _splits(**names: str) -> dict[str, Arguments]:
    return {part: {"split": name} for part, name in names.items()}


_FLAG: dict[str, Arguments] = {"train": {"train": True}, "test": {"train": False}}
_WHOLE: dict[str, Arguments] = {"train": {}}
_TWO = _splits(train="train", test="test")
_THREE = _splits(train="train", validation="val", test="test")

SETS: dict[str, dict[str, Arguments]] = {
    "CIFAR10": _FLAG,
    "CIFAR100": _FLAG,
    "Country211": _splits(train="train", validation="valid", test="test"),
    "DTD": _THREE,
    "EuroSAT": _WHOLE,
    "FashionMNIST": _FLAG,
    "Flowers102": _THREE,
    "Food101": _TWO,
    "GTSRB": _TWO,
    "Imagenette": _splits(train="train", validation="val"),
    "KMNIST": _FLAG,
    "MNIST": _FLAG,
    "RenderedSST2": _THREE,
    "SEMEION": _WHOLE,
    "STL10": _TWO,
    "SUN397": _WHOLE,
    "SVHN": _TWO,
    "USPS": _FLAG,
}
"""torchvision's class, and the arguments that give each split as it is published.

Sets of videos, pairs and several labels are left out, and EMNIST, whose images lie on their side.
"""


LAYOUTS = {"FGVCAircraft": "aircraft", "OxfordIIITPet": "pets", "StanfordCars": "cars"}
"""Sets of torchvision that are read as published layouts, in the folder that torchvision unpacks them to."""


def load_torchvision(name: str, *, strict: bool = False) -> Splits:
    """Load a set that is on disk as torchvision downloads it.

    Args:
        name: the class, and perhaps the folder that was its `root`: "Flowers102" or "Flowers102:/data/torchvision".
            Without one, the root is `data`.
        strict: refuse damaged image files instead of leaving them out.

    Raises:
        UserError: there is no such class, or the set is not there; how to fetch it is said.
    """
    kind, _, given = name.removeprefix("torchvision/").partition(":")
    root = Path(given or ROOT).expanduser()
    if kind in LAYOUTS:
        layout = layouts()[LAYOUTS[kind]]
        if layout.find(root) is None:
            raise _absent(kind, root, {})
        return layout.load(root, strict=strict)
    if kind not in SETS:
        raise UserError(f"there is no torchvision set {kind!r}; {nearest(kind, [*SETS, *LAYOUTS])}")
    opened = {part: _open(kind, root, arguments) for part, arguments in SETS[kind].items()}
    splits = {part: _split(dataset, root, part) for part, dataset in opened.items()}
    count = 1 + max(int(split.labels.max()) for split in splits.values())
    return make_splits(kind.lower(), _classes(opened["train"], count), splits, strict=strict)


def _open(kind: str, root: Path, arguments: Arguments) -> Any:
    dataset = getattr(datasets, kind)
    paths = {"loader": str} if "loader" in signature(dataset).parameters else {}  # items have paths in place of images
    try:
        return dataset(str(root), **arguments, **paths, download=False)  # SEMEION downloads unless it is told not to
    except (RuntimeError, OSError) as error:
        raise _absent(kind, root, arguments) from error


def _absent(kind: str, root: Path, arguments: Arguments) -> UserError:
    call = ", ".join([repr(str(root)), *(f"{key}={value!r}" for key, value in arguments.items()), "download=True"])
    how = (
        f"put its files into {root / 'stanford_cars'}, because its makers' page is gone"
        if kind == "StanfordCars"
        else f"fetch it with torchvision.datasets.{kind}({call})"
    )
    return UserError(f"torchvision's {kind} is not in {root} or is not whole; {how}")


def _split(dataset: Any, root: Path, part: str) -> Split:
    """Images and labels, without decoding any image."""
    if hasattr(dataset, "loader") or isinstance(dataset, datasets.GTSRB):
        given = _gtsrb(root / "gtsrb", part) if isinstance(dataset, datasets.GTSRB) else dataset
        samples = sorted(given[index] for index in range(len(given)))  # SUN397's order is the file system's
        return Split(FileImages(file for file, _ in samples), np.array([label for _, label in samples], dtype=np.int64))
    labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels, dtype=np.int64)
    pixels = np.asarray(dataset.data)
    if pixels.ndim == 4 and pixels.shape[1] == 3:  # SVHN and STL10 have the channels first
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    return Split(ArrayImages(pixels), labels)


def _gtsrb(folder: Path, part: str) -> list[tuple[str, int]]:
    """The files of the one set whose class does not say them."""
    if part == "train":
        return [*make_dataset(str(folder / "GTSRB" / "Training"), extensions=(".ppm",))]
    images = folder / "GTSRB" / "Final_Test" / "Images"
    with (folder / "GT-final_test.csv").open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter=";", skipinitialspace=True)
        return [(str(images / row["Filename"]), int(row["ClassId"])) for row in rows]


def _classes(dataset: Any, count: int) -> list[str]:
    """Torchvision's class names, or numbers; Imagenette has several names for a class."""
    names = getattr(dataset, "classes", None)
    if names is None:
        return [str(label) for label in range(count)]
    return [name if isinstance(name, str) else ", ".join(name) for name in names]
