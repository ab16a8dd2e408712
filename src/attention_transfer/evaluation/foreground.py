"""Attention as a detector of the object: its most attended patches, compared with a mask.

Shapes: B images, R and C rows and columns of patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.data import Normalise, Split, eval_pixels
from attention_transfer.errors import UserError
from attention_transfer.vit import ViTSpec, capture, describe, patch_attention

MASS = 0.6
"""Share of the attention that lies in the foreground, as in DINO's evaluation."""


def foreground(attention_BRC: Tensor, mass: float = MASS) -> Tensor:
    """The smallest set of patches that gets a share of the attention (Caron et al. 2021, DINO, Fig. 4).

    Args:
        attention_BRC: attention that the patches get, not negative.
        mass: the share, in (0, 1].

    Returns:
        bool, of the same shape.
    """
    flat = attention_BRC.flatten(1)
    values, order = flat.sort(dim=1, descending=True)
    before = values.cumsum(dim=1) - values
    kept = before < mass * flat.sum(dim=1, keepdim=True)
    return torch.zeros_like(kept).scatter(1, order, kept).view_as(attention_BRC)


@dataclass(frozen=True)
class Looks:
    """How well attention covers objects, image by image, without those whose object is cropped away.

    Attributes:
        ious: intersection over union of its foreground and the object's mask, in [0, 1].
        shares: the object's share of the patches' attention, in [0, 1]; uniform attention has the object's share of
            the area.
    """

    ious: tuple[float, ...]
    shares: tuple[float, ...]

    @property
    def iou(self) -> float:
        """Mean over images; NaN where there is none."""
        return fmean(self.ious) if self.ious else nan

    @property
    def share(self) -> float:
        """Mean over images; NaN where there is none."""
        return fmean(self.shares) if self.shares else nan


@torch.no_grad()
def looks(network: nn.Module, vit: nn.Module, split: Split, *, mass: float = MASS, batch: int = 64) -> Looks:
    """Measure how well the last block's attention covers the objects.

    The attention is the class token's (or else the mean query's), mean over heads; nearest neighbours enlarge it to the
    network's input. Masks are resized and cropped as the images are.

    Args:
        network: what runs on the images; a student that copies attention needs its teacher.
        vit: the vision transformer in it whose attention is measured.
        split: images with masks.
        mass: see `foreground`.
        batch: images a forward pass.

    Returns:
        Both measures of each image.

    Raises:
        UserError: the data set has no masks.
    """
    if split.masks is None:
        raise UserError("attention can't be held against masks, as this data set has none")
    spec = describe(vit)
    pixels, prepare = eval_pixels(spec), Normalise(spec)
    overlaps, shares = [], []
    for start in range(0, len(split), batch):
        places = range(start, min(start + batch, len(split)))
        images = torch.stack([pixels(split.images[i]) for i in places])
        masks = torch.stack([pixels(Image.fromarray(split.masks[i]).convert("RGB"))[0] >= 128 for i in places])
        with capture(vit, layers=[-1]) as calls:
            network(prepare(images))
        attention = patch_attention(calls[-1], spec)
        found, spread = (_enlarged(part, spec) for part in (foreground(attention, mass), attention))
        there = masks.flatten(1).any(dim=1)
        overlaps.append(_jaccard(found > 0, masks)[there])
        shares.append(((spread * masks).sum(dim=(1, 2)) / spread.sum(dim=(1, 2)))[there])
    return Looks(tuple(torch.cat(overlaps).tolist()), tuple(torch.cat(shares).tolist()))


def _enlarged(patches_BRC: Tensor, spec: ViTSpec) -> Tensor:
    """Patches to pixels, (B, height, width)."""
    return F.interpolate(patches_BRC[:, None].float(), size=spec.image_size, mode="nearest")[:, 0]


def _jaccard(found: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of each pair, (B,)."""
    both, either = (found & masks).flatten(1), (found | masks).flatten(1)
    return both.sum(dim=1) / either.sum(dim=1).clamp_min(1)
