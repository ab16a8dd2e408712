"""Fashion-MNIST as class folders, with splits that are small enough to be evaluated often.

    python -m benchmarks.photos.fashion PREPARED OUT

PREPARED is what `prepare.py` made. OUT/<split>/<class>/NNNN.png: of each of the ten classes the first 1,000 pictures of
the official training split for training, the next 200 for validation, and the first 200 of the official test split. A
teacher may be pre-trained on all 60,000 without labels: `--data torchvision/FashionMNIST:PREPARED`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import FashionMNIST

SPLITS = {"train": (True, 0, 1000), "val": (True, 1000, 1200), "test": (False, 0, 200)}
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
        for split, (train, start, stop) in SPLITS.items():
            write(FashionMNIST(args.prepared, train=train), made / split, start, stop)
        made.rename(args.out)


def write(official: FashionMNIST, folder: Path, start: int, stop: int) -> None:
    """Write pictures `start` to `stop` of each class."""
    labels = np.asarray(official.targets)
    for index, name in enumerate(official.classes):
        place = folder / name.replace("/", " or ")
        place.mkdir(parents=True)
        for number in np.flatnonzero(labels == index)[start:stop]:
            Image.fromarray(np.asarray(official.data[number])).save(place / f"{number:05}.png")


if __name__ == "__main__":
    main()
