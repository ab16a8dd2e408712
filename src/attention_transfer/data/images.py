"""Labelled images, in memory or in files, as datasets for a model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from attention_transfer.data.decoding import read_image
from attention_transfer.data.threads import in_threads
from attention_transfer.data.transforms import Transform


class Images(Protocol):
    """Images by index, in memory or elsewhere; decoded on access."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int, /) -> Image.Image:
        """The image at an index, upright."""

    def take(self, indices: NDArray[np.int64], /) -> Images:
        """The images at these indices."""


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory, uint8 (n, height, width[, 3])."""

    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def take(self, indices: NDArray[np.int64]) -> ArrayImages:
        """The images at these indices."""
        return ArrayImages(self.pixels[indices])


class FileImages:
    """Image files.

    All paths lie in one string of bytes: a million objects would be copied, page by page, into every worker process,
    because access changes an object's reference count.
    """

    def __init__(self, paths: Iterable[str | bytes | Path]) -> None:
        names = [os.fsencode(path) for path in paths]
        self._text = b"".join(names)
        self._ends = np.cumsum([0, *map(len, names)])

    def path(self, index: int) -> Path:
        """Where an image is."""
        return Path(os.fsdecode(self._name(index)))

    @property
    def names(self) -> list[str]:
        """Where they are, as text: a million `Path` objects take a minute."""
        return [os.fsdecode(self._name(index)) for index in range(len(self))]

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where they are."""
        return tuple(map(Path, self.names))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Image.Image:
        return read_image(os.fsdecode(self._name(range(len(self))[index])))

    def take(self, indices: NDArray[np.int64]) -> FileImages:
        """The images at these indices."""
        return FileImages(self._name(index) for index in indices.tolist())

    def _name(self, index: int) -> bytes:
        return self._text[self._ends[index] : self._ends[index + 1]]


class ImageSet(Dataset[tuple[Tensor, Tensor]]):
    """Images with labels; each item is what the transform makes of an image, and an int64 class.

    An image that can't be read, though it could when the set was loaded, raises a `UserError` that names it.
    """

    def __init__(self, images: Images, labels: NDArray[np.int64], transform: Transform) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[index]), torch.tensor(self.labels[index])

    def materialised(self) -> TensorDataset:
        """Every item once, as tensors in memory; for a deterministic transform of a small set."""
        items = in_threads(self.__getitem__, range(len(self)), "reading images")
        return TensorDataset(torch.stack([image for image, _ in items]), torch.stack([label for _, label in items]))


@dataclass(frozen=True)
class Split:
    """Raw images of one split.

    Attributes:
        images: as they are.
        labels: their classes, int64 (n,).
        masks: where the object is, bool (n, height, width), for images of one size; `None` if that is not known.
    """

    images: Images
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Split:
        """The images at these indices."""
        masks = None if self.masks is None else self.masks[indices]
        return Split(self.images.take(indices), self.labels[indices], masks)

    def with_transform(self, transform: Transform) -> ImageSet:
        """The split as a dataset for a model."""
        return ImageSet(self.images, self.labels, transform)


@dataclass(frozen=True)
class Splits:
    """A data set cut into training, validation and test; the test split is read once, at the end.

    Attributes:
        name: what people call it.
        classes: class names, in the order of the labels.
        train: what is learnt from, before labels are chosen.
        validation: what is selected by; never part of the test split.
        test: what is reported.
        notes: what a reader should know of how the splits were made, a sentence each.
        skipped: files that were left out, with the reasons.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    notes: Sequence[str] = ()
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Split]:
        """The three splits by their names."""
        return {"train": self.train, "validation": self.validation, "test": self.test}
