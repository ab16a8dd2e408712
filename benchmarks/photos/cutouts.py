"""Cut-outs on photographs: a data set with exact masks and boxes, the same for the same seed.

    python -m benchmarks.photos.cutouts PREPARED OUT [--seed 0] [--size 126]

PREPARED is what `prepare.py` made. OUT/<variant>/<split>/<class>/NNN.png are pictures for `--data OUT/<variant>`;
OUT/masks/<variant>/… are their masks (0 or 255), and OUT/boxes-<variant>.csv their boxes in pixels (right and bottom
are outside). Cut-outs are disjoint between the splits. The variants:

* plain: on grey;
* photographs: on random pieces of photographs, which are disjoint between the splits, too;
* shift: the background goes with the class in training and validation, and is that of another class in testing.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = {
    "birds": "animals_birds",
    "flowers": "plants_flowers",
    "fruit": "food_fruit",
    "mammals": "animals_mammals",
    "roadsigns": "town_roadsigns",
    "tools": "household_tools",
    "vegetables": "food_vegetables",
}
# Of scikit-image's and scikit-learn's photographs those that show none of the classes.
BACKGROUNDS = {
    "train": ("china.jpg", "coffee.png", "gravel.png", "motorcycle_left.png"),
    "val": ("brick.png", "rocket.jpg"),
    "test": ("coins.png", "grass.png", "hubble_deep_field.jpg"),
}
SHIFT = ("china.jpg", "coffee.png", "gravel.png", "motorcycle_left.png", "brick.png", "rocket.jpg", "grass.png")
SIZES = {"train": 24, "val": 12, "test": 24}
"""Pictures of each class; a cut-out is there several times where a class has fewer, at other places and sizes."""

SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}
SCALE = (0.4, 0.85)  # of the longer side of a cut-out, in sides of the picture
VARIANTS = ("plain", "photographs", "shift")
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """A picture, uint8 (size, size, 3); its mask, bool (size, size); its box: left, top, right, bottom."""

    pixels: Pixels
    mask: NDArray[np.bool_]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The smallest box around the mask, with right and bottom outside."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def main() -> None:
    """Write every variant, whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=126)
    args = parser.parse_args()
    missing = [name for name in ("cutouts", "backgrounds") if not (args.prepared / name).is_dir()]
    if missing:
        sys.exit(f"{args.prepared} has no {' and no '.join(missing)}; run python -m benchmarks.photos.prepare first")
    if args.out.exists():
        sys.exit(f"{args.out} is there already; name a new folder")
    args.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.absolute().parent, prefix=".") as scratch:
        made = Path(scratch) / args.out.name
        for variant in VARIANTS:
            write(variant, args.prepared, made, seed=args.seed, size=args.size)
        made.rename(args.out)
    print(args.out)


def write(variant: str, prepared: Path, out: Path, *, seed: int, size: int) -> None:
    """Pictures, masks and boxes of one variant."""
    rows = []
    for number, (label, folder) in enumerate(CLASSES.items()):
        for split, paths in parts(sorted((prepared / "cutouts" / folder).glob("*.png")), seed).items():
            for i in range(SIZES[split]):
                # One generator a picture: more pictures, or other variants, change none of these.
                draw = np.random.default_rng((seed, list(SIZES).index(split), number, i))
                picture = composed(paths[i % len(paths)], scene(variant, split, number, prepared, size, draw), draw)
                name = Path(split, label, f"{i:03d}.png")
                for root, pixels in ((variant, picture.pixels), (f"masks/{variant}", picture.mask)):
                    target = out / root / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint8) * 255).save(target)
                rows.append([str(name), *picture.box])
    with (out / f"boxes-{variant}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "left", "top", "right", "bottom"], *rows])


def parts(paths: list[Path], seed: int) -> dict[str, list[Path]]:
    """The cut-outs that have an alpha channel, dealt to the splits."""
    masked = [path for path in paths if transparent(path)]
    order = np.random.default_rng(seed).permutation(len(masked))
    ends = np.round(np.cumsum([*SHARES.values()]) * len(masked)).astype(int)
    return {s: [masked[i] for i in piece] for s, piece in zip(SHARES, np.split(order, ends[:-1]), strict=True)}


def transparent(path: Path) -> bool:
    """Whether some, but not all, of a picture is background."""
    with Image.open(path) as image:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    return bool((alpha < 128).any() and (alpha >= 128).any())


def scene(variant: str, split: str, label: int, prepared: Path, size: int, draw: np.random.Generator) -> Image.Image:
    """What a cut-out is put on: grey, or a random square of a photograph."""
    if variant == "plain":
        return Image.new("RGB", (size, size), (128, 128, 128))
    if variant == "photographs":
        name = str(draw.choice(BACKGROUNDS[split]))
    else:
        other = label + int(draw.integers(1, len(SHIFT))) if split == "test" else label
        name = SHIFT[other % len(SHIFT)]
    with Image.open(prepared / "backgrounds" / name) as opened:
        image = opened.convert("RGB")
    side = int(draw.integers(min(image.size) // 3, min(image.size) + 1))
    left, top = (int(draw.integers(0, length - side + 1)) for length in image.size)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def composed(path: Path, background: Image.Image, draw: np.random.Generator) -> Picture:
    """A cut-out at a random place and size, whole inside the picture."""
    with Image.open(path) as opened:
        cutout = opened.convert("RGBA")
    cutout = cutout.crop(cutout.getchannel("A").getbbox())
    size = background.width
    factor = size * draw.uniform(*SCALE) / max(cutout.size)
    cutout = cutout.resize([max(1, round(length * factor)) for length in cutout.size], Image.Resampling.LANCZOS)
    place = (int(draw.integers(0, size - cutout.width + 1)), int(draw.integers(0, size - cutout.height + 1)))
    layer = Image.new("RGBA", background.size)
    layer.paste(cutout, place)
    pixels = Image.alpha_composite(background.convert("RGBA"), layer).convert("RGB")
    return Picture(np.asarray(pixels), np.asarray(layer)[..., 3] >= 128)


if __name__ == "__main__":
    main()
