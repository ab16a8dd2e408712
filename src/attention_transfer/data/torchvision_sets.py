"""Classification sets of torchvision, by the names of its classes; what is not there is not downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from attention_transfer.data.cut import complete
from attention_transfer.data.images import FileImages, Split, Splits
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
    "FGVCAircraft": _THREE,
    "Flowers102": _THREE,
    "Food101": _TWO,
    "GTSRB": _TWO,
    "Imagenette": _splits(train="train", validation="val"),
    "KMNIST": _FLAG,
    "MNIST": _FLAG,
    "OxfordIIITPet": _splits(train="trainval", test="test"),
    "RenderedSST2": _THREE,
    "SEMEION": _WHOLE,
    "STL10": _TWO,
    "StanfordCars": _TWO,
    "SUN397": _WHOLE,
    "SVHN": _TWO,
    "USPS": _FLAG,
}
"""torchvision's class, and the arguments that give each split as it is published.

Sets of videos, pairs and several labels are left out, and EMNIST, whose images lie on their side.
"""


@dataclass(frozen=True)
class MemoryImages:
    """Images of a torchvision set that is held in memory.

    Attributes:
        dataset: gives (image, class) by index.
        indices: which of its images, int64 (n,).
    """

    dataset: Any
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Image.Image:
        image: Image.Image = self.dataset[int(self.indices[index])][0]
        return image

    def take(self, indices: NDArray[np.int64]) -> MemoryImages:
        """The images at these indices."""
        return MemoryImages(self.dataset, self.indices[indices])


def load_torchvision(name: str) -> Splits:
    """Load a set that is on disk as torchvision downloads it.

    Args:
        name: the class, and perhaps the folder that was its `root`: "Flowers102" or "Flowers102:/data/torchvision".
            Without one, the root is `data`.

    Raises:
        UserError: there is no such class, or the set is not there; how to fetch it is said.
    """
    kind, _, given = name.removeprefix("torchvision/").partition(":")
    if kind not in SETS:
        raise UserError(f"there is no torchvision set {kind!r}; {nearest(kind, SETS)}")
    root = Path(given or ROOT).expanduser()
    parts = {part: _open(kind, root, arguments) for part, arguments in SETS[kind].items()}
    splits = {part: _split(dataset) for part, dataset in parts.items()}
    count = 1 + max(int(split.labels.max()) for split in splits.values())
    return complete(
        kind.lower(),
        _classes(parts["train"], count),
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
    )


def _open(kind: str, root: Path, arguments: Arguments) -> Any:
    # SEMEION downloads unless it is told not to; StanfordCars takes the argument, but its page is gone.
    try:
        return getattr(datasets, kind)(str(root), **arguments, download=False)
    except (RuntimeError, OSError) as error:
        call = ", ".join([repr(str(root)), *(f"{key}={value!r}" for key, value in arguments.items()), "download=True"])
        how = (
            f"put its files into {root / 'stanford_cars'}, for its makers' page is gone"
            if kind == "StanfordCars"
            else f"fetch it with torchvision.datasets.{kind}({call})"
        )
        raise UserError(f"torchvision's {kind} is not in {root} or is not whole; {how}") from error


def _split(dataset: Any) -> Split:
    """Images and labels, without decoding any image.

    torchvision has no common attribute for these: sets of files have samples, or files and labels; sets in memory have
    targets or labels.
    """
    samples = getattr(dataset, "samples", None) or getattr(dataset, "_samples", None)
    files = getattr(dataset, "_image_files", None) or getattr(dataset, "_images", None)
    if files and not samples:
        samples = list(zip(files, dataset._labels, strict=True))
    if samples:
        samples = sorted((str(file), int(label)) for file, label in samples)  # SUN397's order is the file system's
        labels = np.array([label for _, label in samples], dtype=np.int64)
        return Split(FileImages(tuple(Path(file) for file, _ in samples)), labels)
    labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels, dtype=np.int64)
    return Split(MemoryImages(dataset, np.arange(len(labels))), labels)


def _classes(dataset: Any, count: int) -> list[str]:
    """Torchvision's class names, or numbers; Imagenette has several names for a class."""
    names = getattr(dataset, "classes", None)
    if names is None:
        return [str(label) for label in range(count)]
    return [name if isinstance(name, str) else ", ".join(name) for name in names]
