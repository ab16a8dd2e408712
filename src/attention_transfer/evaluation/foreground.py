"""Attention as a detector of the object: its largest patches, held against a mask.

Shapes: B images, R and C rows and columns of patches.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.data import Normalise, Split, eval_pixels
from attention_transfer.errors import UserError
from attention_transfer.vit import capture, describe, patch_attention

MASS = 0.6
"""Share of the attention that the foreground gets, as in DINO's evaluation."""


def foreground(attention_BRC: Tensor, mass: float = MASS) -> Tensor:
    """The smallest set of patches that gets a share of the attention (Caron et al. 2021, DINO, Fig. 4).

    Args:
        attention_BRC: what the patches get, not negative.
        mass: the share, in (0, 1].

    Returns:
        bool, of the same shape.
    """
    flat = attention_BRC.flatten(1)
    values, order = flat.sort(dim=1, descending=True)
    before = values.cumsum(dim=1) - values
    kept = before < mass * flat.sum(dim=1, keepdim=True)
    return torch.zeros_like(kept).scatter(1, order, kept).view_as(attention_BRC)


@torch.no_grad()
def attention_iou(network: nn.Module, vit: nn.Module, split: Split, *, mass: float = MASS, batch: int = 64) -> float:
    """How well the last block's attention covers the objects: intersection over union with their masks.

    The attention is the class token's (or else the mean query's), mean over heads; its foreground is enlarged to the
    network's input by nearest neighbours. Masks are resized and cropped as the images are.

    Args:
        network: what is run on the images; a copied student needs its teacher.
        vit: the vision transformer in it whose attention counts.
        split: images of which the masks are known.
        mass: see `foreground`.
        batch: images a forward pass.

    Returns:
        The mean over images, in [0, 1]; those whose mask is empty after cropping do not count.

    Raises:
        UserError: the masks are not known.
    """
    if split.masks is None:
        raise UserError("attention can't be held against masks, as this data set has none")
    spec, values = describe(vit), []
    pixels, prepare = eval_pixels(spec), Normalise(spec)
    for start in range(0, len(split), batch):
        places = range(start, min(start + batch, len(split)))
        images = torch.stack([pixels(split.images[i]) for i in places])
        masks = torch.stack([pixels(Image.fromarray(split.masks[i]).convert("RGB"))[0] >= 128 for i in places])
        with capture(vit, layers=[-1]) as calls:
            network(prepare(images))
        found = foreground(patch_attention(calls[-1], spec), mass)
        enlarged = F.interpolate(found[:, None].float(), size=spec.image_size, mode="nearest")[:, 0] > 0
        values.append(_jaccard(enlarged, masks)[masks.flatten(1).any(dim=1)])
    return float(torch.cat(values).mean())


def _jaccard(found: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of each pair, (B,)."""
    both, either = (found & masks).flatten(1), (found | masks).flatten(1)
    return both.sum(dim=1) / either.sum(dim=1).clamp_min(1)
