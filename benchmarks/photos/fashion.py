"""Fashion-MNIST as class folders, with splits that are small enough to be evaluated often.

    python -m benchmarks.photos.fashion PREPARED OUT

PREPARED is what `prepare.py` made. OUT/labelled/<split>/<class>/NNNN.png: of each of the ten classes the first 1,000
pictures of the official training split for training, the next 200 for validation, and the first 200 of the official
test split. OUT/unlabelled/<split>/<class>/NNNN.png, for a teacher: all of the official training split but those
validation pictures, which choose its epoch and which it does not learn from; they and the test pictures as above.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import FashionMNIST

ALL = range(6000)
HELD_BACK = range(1000, 1200)
FOLDERS = {
    "labelled/train": (True, range(1000)),
    "labelled/val": (True, HELD_BACK),
    "labelled/test": (False, range(200)),
    "unlabelled/train": (True, [number for number in ALL if number not in HELD_BACK]),
    "unlabelled/val": (True, HELD_BACK),
    "unlabelled/test": (False, range(200)),
}
"""Whether of the official training split, and which pictures of each class."""


def main() -> None:
    """Write the folder, whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} is there already; name a new folder")
    args.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.absolute().parent) as scratch:
        made = Path(scratch) / "pictures"
        for folder, (train, numbers) in FOLDERS.items():
            write(FashionMNIST(args.prepared, train=train), made / folder, numbers)
        made.rename(args.out)


def write(official: FashionMNIST, folder: Path, numbers: Sequence[int]) -> None:
    """Write those pictures of each class."""
    labels = np.asarray(official.targets)
    for index, name in enumerate(official.classes):
        place = folder / name.replace("/", " or ")
        place.mkdir(parents=True)
        for number in np.flatnonzero(labels == index)[numbers]:
            Image.fromarray(np.asarray(official.data[number])).save(place / f"{number:05}.png")


if __name__ == "__main__":
    main()
