"""Data sets of Hugging Face's `datasets`: from the hub, saved on disk, or a folder that it understands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.data.decoding import Damaged, decode, read_image
from attention_transfer.data.images import Split, Splits
from attention_transfer.data.splits import SPLIT_NAMES, make_splits
from attention_transfer.errors import UserError

UNLABELLED = -1
"""The label of images whose class the hub keeps secret, as in many test splits."""


@dataclass(frozen=True)
class HubImages:
    """Images of a `datasets.Dataset`, decoded on access.

    Attributes:
        dataset: has one column, of type `Image(decode=False)`; it is mapped from disk, and sent to other processes by
            the names of its files.
        column: its name.
    """

    dataset: Any
    column: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Image.Image:
        stored = self.dataset[int(index)][self.column] or {"bytes": None, "path": None}
        if stored["bytes"] is None and stored["path"] is None:
            raise UserError(f"row {index} has no image in column {self.column!r}; leave it out")
        if stored["bytes"] is None:
            return read_image(stored["path"])
        try:
            return decode(stored["bytes"])
        except Damaged as error:
            where = f"{stored['path']} (row {index})" if stored["path"] else f"row {index}"
            raise UserError(f"the image in {where} {error}") from error

    def take(self, indices: NDArray[np.int64]) -> HubImages:
        """The images at these indices."""
        return HubImages(self.dataset.select(indices), self.column)


def load_hub(name: str) -> Splits:
    """Load a data set by its name on the hub, or from a folder.

    The columns are found by their types, `Image` and `ClassLabel`. Splits are train, validation and test, by these
    names or their usual short forms; a test split without labels is not used.

    Args:
        name: as "ethz/food101", or a folder that `save_to_disk` made or `load_dataset` reads. ":config" after it
            chooses a configuration, "#column" the column with the classes: "uoft-cs/cifar100#fine_label".

    Raises:
        UserError: `datasets` is not installed, or it can't load this, or the columns or splits don't fit.
    """
    name, _, column = name.partition("#")
    loaded = _load(name)
    named = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    parts: dict[str, Any] = {}
    others = [split for split in map(str, named) if split.lower() not in SPLIT_NAMES]
    for split, dataset in named.items():
        parts.setdefault(SPLIT_NAMES.get(str(split).lower(), ""), dataset)
    if "train" not in parts:
        raise UserError(f"{name} has the splits {_listed(named)}, but none called train; save it with one")
    notes = [f"Splits of other names are not used: {_listed(others)}."] if others else []
    image, label = _columns(name, parts["train"].features, column)
    splits: dict[str, Split] = {}
    for part in [part for part in ("train", "validation", "test") if part in parts]:
        if (found := _split(name, part, parts[part], image, label)) is not None:
            splits[part] = found
        else:
            notes.append(f"The {part} split is not used, because it has no labels.")
    if "train" not in splits:
        raise UserError(f"the training images of {name} have no labels in {label!r}; choose a column by {name}#column")
    classes = parts["train"].features[label].names
    folder = Path(name).expanduser()
    short = folder.resolve().name if folder.is_dir() else name
    return make_splits(short, classes, splits, notes=notes)


def _load(name: str) -> Any:
    """A `Dataset`, or a `DatasetDict` of them."""
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise UserError(
            f"hf/{name} needs the package datasets; install it with pip install 'attention-transfer[hf]'"
        ) from error
    path = Path(name).expanduser()
    saved = any((path / mark).exists() for mark in ("dataset_dict.json", "state.json"))
    repository, _, config = (name, "", "") if path.exists() else name.partition(":")
    try:
        if saved:
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(str(path) if path.exists() else repository, config or None)
    except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise UserError(f"datasets can't load {name} ({reason}); check the name, the folder and the network") from error


def _columns(name: str, features: Mapping[str, Any], column: str) -> tuple[str, str]:
    """The column of images and the column of classes, by their types."""
    datasets = import_module("datasets")
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(images) != 1:
        several, none = (
            f"several columns of images, {_listed(images)}",
            f"no column of images, only {_listed(features)}",
        )
        raise UserError(f"{name} has {several if images else none}; save it with exactly one column of type Image")
    if column in labels:
        return images[0], column
    if column:
        raise UserError(f"{name} has no column {column!r} of type ClassLabel; there are: {_listed(labels) or 'none'}")
    if not labels:
        raise UserError(
            f"{name} has no column of type ClassLabel, only {_listed(features)}; make one with "
            "dataset.class_encode_column(...) and save it"
        )
    if len(labels) > 1:
        raise UserError(f"{name} has several columns of classes, {_listed(labels)}; choose by {name}#{labels[0]}")
    return images[0], labels[0]


def _split(name: str, part: str, dataset: Any, image: str, label: str) -> Split | None:
    """A split; `None` if it has no labels."""
    datasets = import_module("datasets")
    if image not in dataset.features or label not in dataset.features:
        raise UserError(f"the {part} split of {name} has no column {image!r} or {label!r}, as training has; add it")
    stored = dataset.select_columns([label]).with_format("arrow")[:][label].to_pylist()
    labels = np.array([UNLABELLED if value is None else value for value in stored], dtype=np.int64)
    unlabelled = int((labels == UNLABELLED).sum())
    if unlabelled == len(labels):
        return None
    if unlabelled:
        raise UserError(
            f"{unlabelled} of {len(labels)} images in the {part} split of {name} have no label; leave them out"
        )
    column = dataset.select_columns([image]).with_format(None).cast_column(image, datasets.Image(decode=False))
    return Split(HubImages(column, image), labels)


def _listed(names: Any) -> str:
    return ", ".join(str(name) for name in names)
