"""What each deviation of public code changes in the score of attention against masks.

    python -m benchmarks.photos.deviations NETWORK IMAGES MASKS [--sizes 476,518] [--limit 60] > table.csv

Prints, as CSV, the Jaccard index of the last block on the cut-outs: by the protocol, and with one thing changed. Images
and masks are folders with the same names, as `cutouts.py` writes them. A border of 2 pixels around each object stands
for void pixels, which cut-outs do not have: at their 126 pixels, it is about as wide as the 5 pixels of PASCAL VOC at
500. On a terminal, a bar says how long it takes.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from attention_transfer import capture, load_vit
from attention_transfer.data import Normalise, eval_pixels
from attention_transfer.evaluation import bca, segment
from attention_transfer.evaluation.foreground import foreground
from attention_transfer.evaluation.intervals import Estimate
from attention_transfer.evaluation.masked_images import load_masked
from attention_transfer.evaluation.masks import VOID, MaskSequence
from attention_transfer.evaluation.records import ImageSequence
from attention_transfer.evaluation.subjects import counted
from attention_transfer.vit import describe

BORDER = 1  # pixels of void on either side of an object's edge
PASSES = 5  # over the images
BLUR = 1.0  # patches: standard deviation of the blur of merged heads


@dataclass(frozen=True)
class WithBorders:
    """Masks whose objects have a border of void pixels."""

    masks: MaskSequence

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        there = self.masks[index] != 0
        # The edge of the picture is none of the object's.
        inside = ndimage.binary_erosion(there, iterations=BORDER, border_value=1)
        border = ndimage.binary_dilation(there, iterations=BORDER) & ~inside
        return np.where(border, VOID, there).astype(np.uint8)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("network", "images", "masks"):
        parser.add_argument(name)
    parser.add_argument("--sizes", default="476,518")
    parser.add_argument("--limit", type=int, default=60)
    args = parser.parse_args()
    masked = load_masked(args.images, args.masks, "test", limit=args.limit, training=0, void="none")
    usual, large = (load_vit(args.network, image_size=int(size)) for size in args.sizes.split(","))
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["what", "dino", "low", "high", "merged-mean", "low", "high"])
    with counted(masked.images, "looking", times=PASSES) as images:
        for what, *estimates in rows(usual, large, images, masked.masks):
            cells = (f"{100 * value:.1f}" if value is not None else "" for e in estimates for value in cells_of(e))
            table.writerow([what, *cells])
            sys.stdout.flush()


def rows(
    usual: nn.Module, large: nn.Module, images: ImageSequence, masks: MaskSequence
) -> Iterator[tuple[str, Estimate | None, Estimate]]:
    """What was changed, and the best head's and the merged heads' scores."""
    size = describe(usual).image_size[0]
    plain, much = segment(usual, images, masks, masses=[0.6, 0.9], void=None, batch=2)
    yield f"the protocol ({size} pixels; 60 %)", plain.scores["dino"], plain.scores["merged-mean"]
    yield "90 % of the mass", much.scores["dino"], much.scores["merged-mean"]
    (wide,) = segment(large, images, masks, void=None, batch=2)
    yield f"{describe(large).image_size[0]} pixels", wide.scores["dino"], wide.scores["merged-mean"]
    yield "merged heads, blurred", None, bca(list(blurred(usual, images, masks)))
    for count in (False, True):
        (found,) = segment(usual, images, WithBorders(masks), void=VOID, count_void=count, batch=2)
        what = f"a border of void, {'counted as background' if count else 'left out'}"
        yield what, found.scores["dino"], found.scores["merged-mean"]


@torch.no_grad()
def blurred(network: nn.Module, images: ImageSequence, masks: MaskSequence) -> Iterator[float]:
    """The Jaccard index of each image, of merged heads that are blurred before the threshold."""
    spec = describe(network)
    pixels, prepare = eval_pixels(spec), Normalise(spec)
    for index in range(len(images)):
        whole = images[index].convert("RGB").resize(spec.image_size[::-1], Image.Resampling.BICUBIC)
        with capture(network, layers=1) as calls:
            network(prepare(pixels(whole))[None])
        row = calls[0].query_row("class").as_logits().maps()[0, :, 0].mean(dim=0)
        map_RC = row[spec.tokens.patches(spec.sequence)].unflatten(0, spec.grid)
        smooth = torch.from_numpy(ndimage.gaussian_filter(map_RC.numpy(), BLUR))
        mask = torch.from_numpy(np.asarray(masks[index]) != 0)
        found = F.interpolate(foreground(smooth[None]).float()[None], size=mask.shape, mode="nearest")[0, 0] > 0
        yield float((found & mask).sum() / (found | mask).sum())


def cells_of(of: Estimate | None) -> Sequence[float | None]:
    """Value and interval."""
    return (None, None, None) if of is None else (of.value, of.low, of.high)


if __name__ == "__main__":
    main()
