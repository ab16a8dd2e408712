"""Attention as a detector of the foreground: the patches with most of it, held against masks, by named protocols.

A patch map is enlarged to the mask by nearest neighbours, so that every pixel belongs to one patch, and all that a
Jaccard index needs is how many pixels of each object are in each patch: no enlarged map is ever made.

Shapes: B images, K maps (heads), R and C rows and columns of patches, P patches, O objects, h and w pixels of a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from attention_transfer.config.choices import MapSource
from attention_transfer.data import eval_pixels
from attention_transfer.errors import UserError
from attention_transfer.evaluation.foreground import MASS, foreground
from attention_transfer.evaluation.intervals import Estimate, bca
from attention_transfer.evaluation.masks import AREAS, VOID, MaskSequence, Regions, checked_mask, regions_of
from attention_transfer.evaluation.records import ImageSequence, input_batches
from attention_transfer.vit import AttentionCall, Indices, ViTSpec, capture, describe, relevance, rollout, select

_HALF = AREAS.index(0.5)
_BEST, _MEAN, _MAX, _HEADS = range(4)  # columns of scores; after the heads' come those of the boxes


@dataclass(frozen=True)
class Segmentation:
    """Jaccard indices of attention's foreground and objects: means over an image's objects, then over images.

    Attributes:
        source: what the maps were.
        layer: the block; `None` where the maps are of all blocks.
        mass: the share of a map that the foreground holds.
        images: how many images have an object; the others do not count.
        objects: how many objects there are.
        scores: by protocol, with intervals over images.

            - "dino": for each object the head that covers it best, which only a mask can tell: an oracle;
            - "merged-mean", "merged-max": the heads' mean or maximum, then its foreground;
            - "fixed-head": the head that is best on the training images; absent where there were none;
            - "centre-box": a box in the middle of the image, which sees nothing.
        per_head: the mean of each head by itself.
        head: of "fixed-head".
        area: share of the image that the box of "centre-box" takes: the best on the training images, or 0.5.
        per_image: the values behind `scores`, for paired comparisons.
    """

    source: MapSource
    layer: int | None
    mass: float
    images: int
    objects: int
    scores: Mapping[str, Estimate]
    per_head: tuple[float, ...]
    head: int | None
    area: float
    per_image: Mapping[str, tuple[float, ...]]


def segment(
    network: nn.Module,
    images: ImageSequence,
    masks: MaskSequence,
    *,
    vit: nn.Module | None = None,
    source: MapSource = "attention",
    layers: Indices = 1,
    masses: Sequence[float] = (MASS,),
    training: tuple[ImageSequence, MaskSequence] | None = None,
    void: int | None = VOID,
    count_void: bool = False,
    batch: int = 8,
) -> tuple[Segmentation, ...]:
    """Hold a network's attention against masks, by all protocols at once.

    The whole image is resized to the network's input, whatever its proportions; nothing is cropped.

    Args:
        network: what is run, in eval mode; a copied student needs its teacher.
        images: at any sizes.
        masks: of the same sizes; values other than 0 and `void` are objects. A mask of bool has one.
        vit: the vision transformer in it whose attention counts; default the only one.
        source: "attention" of a block, or "rollout" or "relevance" (for the predicted class) of all.
        layers: which blocks, for "attention"; default the last.
        masses: shares of a map that the foreground holds, in (0, 1].
        training: images and masks on which head and box are chosen.
        void: value of pixels that belong to nothing; `None` where there are none, so that 255 may be an object.
        count_void: count these pixels as background, as some public copies of the protocol do.
        batch: images a forward pass.

    Returns:
        A result for each layer and mass: layer by layer, and mass by mass in each.

    Raises:
        UserError: no mask has an object, a mask is not of its image's size, or a setting is out of range.
    """
    vit = network if vit is None else vit
    spec = describe(vit)
    if not masses or not all(0 < mass <= 1 for mass in masses):
        raise UserError(f"masses are {list(masses)}; choose shares above 0, up to 1")
    chosen = select(layers, spec.depth, "layers")
    maps = _maps_of(network, vit, spec, source, chosen)
    settings = [(layer, mass) for layer in (chosen if source == "attention" else [None]) for mass in masses]

    def scored(images: ImageSequence, masks: MaskSequence) -> tuple[list[NDArray[np.float64]], int]:
        return _scored(network, spec, maps, images, masks, masses, void, count_void, batch)

    learnt = None if training is None else scored(*training)[0]
    found, objects = scored(images, masks)
    return tuple(
        _result(source, layer, mass, found[i], objects, None if learnt is None else learnt[i].mean(axis=0))
        for i, (layer, mass) in enumerate(settings)
    )


def _maps_of(
    network: nn.Module, vit: nn.Module, spec: ViTSpec, source: MapSource, layers: Sequence[int]
) -> Callable[[Tensor], Sequence[Tensor]]:
    """Makes maps (B, K, R, C) of a batch of inputs, for each layer."""
    if source == "rollout":
        return lambda inputs: [rollout(network, inputs, vit=vit)[:, None]]
    if source == "relevance":
        return lambda inputs: [relevance(network, inputs, vit=vit)[:, None]]

    def run(inputs: Tensor) -> Sequence[Tensor]:
        with torch.no_grad(), capture(vit, layers=layers) as calls:
            network(inputs)
        return [_head_maps(call, spec) for call in calls]

    return run


def _head_maps(call: AttentionCall, spec: ViTSpec) -> Tensor:
    """What each head gives to the patches, (B, H, R, C): the class token's row, or else that of the mean query."""
    maps_BHN = call.query_row("class" if spec.class_token else "mean").as_logits().maps().squeeze(-2)
    patches_BHRC: Tensor = maps_BHN[..., spec.tokens.patches(maps_BHN.shape[-1])].unflatten(-1, spec.grid)
    return patches_BHRC


def _scored(
    network: nn.Module,
    spec: ViTSpec,
    maps: Callable[[Tensor], Sequence[Tensor]],
    images: ImageSequence,
    masks: MaskSequence,
    masses: Sequence[float],
    void: int | None,
    count_void: bool,
    batch: int,
) -> tuple[list[NDArray[np.float64]], int]:
    """For each layer and mass (images with objects, columns of scores), and how many objects there are."""
    if len(images) != len(masks):
        raise UserError(f"there are {len(images)} images and {len(masks)} masks; give a mask for each image")
    pixels, (height, width) = eval_pixels(spec), spec.image_size
    rows: list[list[NDArray[np.float64]]] = []
    objects = 0

    def whole(image: Image.Image) -> Tensor:  # eval_pixels does not crop an image of the network's own size
        return pixels(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))

    for places, pictures, inputs in input_batches(network, spec, images, whole, batch):
        layers = [maps_BKRC.cpu() for maps_BKRC in maps(inputs)]
        for place, index in enumerate(places):
            regions = regions_of(checked_mask(masks[index], pictures[place].size, index), spec.grid, void, count_void)
            if regions is not None:
                objects += len(regions.objects)
                rows.append([_columns(of_layer[place], mass, regions) for of_layer in layers for mass in masses])
    if not rows:
        raise UserError(
            f"no mask has an object: their values are 0 (background) and {void} (void) alone; check them, or set void"
        )
    return [np.stack(scores) for scores in zip(*rows, strict=True)], objects


def _columns(maps_KRC: Tensor, mass: float, regions: Regions) -> NDArray[np.float64]:
    """Scores of one image: best head, mean, maximum, each head, each box."""
    merged = torch.stack([maps_KRC.mean(dim=0), maps_KRC.amax(dim=0)])
    found_KP = foreground(torch.cat([maps_KRC, merged]), mass).flatten(1).numpy().astype(np.int64)
    both_OK = regions.objects @ found_KP.T
    either_OK = regions.objects.sum(axis=1, keepdims=True) + regions.area @ found_KP.T - both_OK
    jaccard_OK = both_OK / either_OK
    heads_OK = jaccard_OK[:, :-2]
    return np.concatenate(
        [[heads_OK.max(axis=1).mean()], jaccard_OK[:, -2:].mean(axis=0), heads_OK.mean(axis=0), regions.boxes]
    )


def _result(
    source: MapSource,
    layer: int | None,
    mass: float,
    scores: NDArray[np.float64],
    objects: int,
    learnt: NDArray[np.float64] | None,
) -> Segmentation:
    """Means over images; `learnt` are the columns' means over training images."""
    heads, boxes = slice(_HEADS, -len(AREAS)), slice(-len(AREAS), None)
    head = None if learnt is None else int(learnt[heads].argmax())
    box = _HALF if learnt is None else int(learnt[boxes].argmax())
    columns = {"dino": scores[:, _BEST], "merged-mean": scores[:, _MEAN], "merged-max": scores[:, _MAX]}
    if head is not None:
        columns["fixed-head"] = scores[:, _HEADS + head]
    columns["centre-box"] = scores[:, boxes][:, box]
    return Segmentation(
        source=source,
        layer=layer,
        mass=mass,
        images=len(scores),
        objects=objects,
        scores={name: bca(values) for name, values in columns.items()},
        per_head=tuple(scores[:, heads].mean(axis=0).tolist()),
        head=head,
        area=AREAS[box],
        per_image={name: tuple(values.tolist()) for name, values in columns.items()},
    )
