"""Segmentation protocols, against plain loops over pixels of maps that were enlarged whole."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer import (
    AttentionTransfer,
    Copy,
    UserError,
    capture,
    describe,
    relevance,
    rollout,
    student_like,
)
from attention_transfer.data import Normalise
from attention_transfer.evaluation import Classifier, MaskFiles, paired_difference, segment

Build = Callable[..., Any]
Scenes = tuple[list[Image.Image], list[NDArray[np.uint8]]]
SIZES = [(40, 56), (33, 47), (24, 24), (50, 20)]


def scenes(seed: int = 0) -> Scenes:
    """Images of several sizes with up to three objects and a void border; the third has no object."""
    draw = np.random.default_rng(seed)
    images, masks = [], []
    for i, (height, width) in enumerate(SIZES):
        images.append(Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)))
        mask = np.zeros((height, width), dtype=np.uint8)
        for value in range(1, 1 if i == 2 else 2 + i % 3):
            top, left = int(draw.integers(0, height // 2)), int(draw.integers(0, width // 2))
            mask[top : top + height // 2, left : left + width // 2] = 255
            mask[top + 1 : top + height // 2 - 1, left + 1 : left + width // 2 - 1] = value
        masks.append(mask)
    return images, masks


def inputs(model: nn.Module, images: list[Image.Image]) -> Tensor:
    resized = [np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC)) for image in images]
    prepared: Tensor = Normalise(describe(model))(torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2))
    return prepared


def head_maps(model: nn.Module, images: list[Image.Image], layer: int = -1) -> Tensor:
    """The class token's attention to 6 × 6 patches, or the softmax of the patches' mean logits."""
    with torch.no_grad(), capture(model, layers=[layer]) as calls:
        model(inputs(model, images))
    logits, spec = calls[0].logits(), describe(model)
    row = logits[:, :, 0] if spec.class_token else logits[:, :, spec.prefix_tokens :].mean(dim=2)
    maps: Tensor = row.softmax(-1)[..., spec.prefix_tokens :].unflatten(-1, (6, 6))
    return maps


def smallest_set(attention: Tensor, mass: float) -> Tensor:
    """DINO's own way: ascending, what lies above the first 1 - mass."""
    flat = attention.flatten().double() / attention.double().sum()
    values, order = flat.sort()
    kept = values.cumsum(0) > 1 - mass
    found = torch.zeros(len(flat), dtype=torch.bool)
    found[order] = kept
    return found.view(attention.shape)


def jaccard(found: NDArray[np.bool_], mask: NDArray[np.uint8], value: int, void: bool) -> float:
    inter = union = 0
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            if mask[y, x] == 255 and not void:
                continue
            there = mask[y, x] == value
            inter, union = inter + (found[y, x] and there), union + (found[y, x] or there)
    return inter / union


def scores(maps: Tensor, masks: list[NDArray[np.uint8]], mass: float = 0.6, void: bool = False) -> list[list[float]]:
    """A list for each image with objects: mean over objects of each map's Jaccard, and of the best map's."""
    rows = []
    for of_image, mask in zip(maps, masks, strict=True):
        objects = [v for v in np.unique(mask) if v not in (0, 255)]
        if not objects:
            continue
        table = []
        for value in objects:
            row = []
            for one in of_image:
                found = smallest_set(one, mass).float()[None, None]
                whole = F.interpolate(found, size=mask.shape, mode="nearest")[0, 0].bool().numpy()
                row.append(jaccard(whole, mask, value, void))
            table.append([*row, max(row)])
        rows.append(np.mean(table, axis=0).tolist())
    return rows


def colour_vit(build: Build, **options: Any) -> Any:
    return build(img_size=24, in_chans=3, **options)


@pytest.mark.parametrize(
    ("options", "layer", "mass", "void"),
    [
        ({}, -1, 0.6, False),
        ({"reg_tokens": 2}, 1, 0.6, False),
        ({"class_token": False, "global_pool": "avg"}, -1, 0.6, False),
        ({}, -1, 0.9, True),
    ],
    ids=["dino", "registers, another layer", "no class token", "deviations"],
)
def test_every_protocol_is_what_counting_pixels_gives(
    options: dict[str, Any], layer: int, mass: float, void: bool, tiny_vit: Build
) -> None:
    model, (images, masks), learnt = colour_vit(tiny_vit, **options), scenes(), scenes(1)
    found = segment(model, images, masks, layers=[layer], masses=[mass], count_void=void, training=learnt, batch=3)[0]
    maps = head_maps(model, images, layer)
    expected = scores(maps, masks, mass, void)
    assert (found.images, found.objects, found.layer, found.mass) == (3, 4, layer % 3, mass)
    assert found.per_image["dino"] == pytest.approx([row[-1] for row in expected], abs=1e-9)
    assert found.per_head == pytest.approx(np.mean(expected, axis=0)[:-1].tolist(), abs=1e-9)
    for name, merged in (("merged-mean", maps.mean(1, keepdim=True)), ("merged-max", maps.amax(1, keepdim=True))):
        assert found.per_image[name] == pytest.approx([row[0] for row in scores(merged, masks, mass, void)], abs=1e-9)
    training = np.mean(scores(head_maps(model, learnt[0], layer), learnt[1], mass, void), axis=0)[:-1]
    assert found.head is not None and found.head == training.argmax()
    assert found.per_image["fixed-head"] == pytest.approx([row[found.head] for row in expected], abs=1e-9)
    assert found.scores["dino"].value == pytest.approx(np.mean([row[-1] for row in expected]))
    best, fixed = found.scores["dino"].value, found.scores["fixed-head"].value
    assert fixed <= best  # the best head for each object is an oracle
    assert json.loads(json.dumps(dataclasses.asdict(found)))["source"] == "attention"


def test_the_box_in_the_middle_is_counted_too(tiny_vit: Build) -> None:
    model, (images, masks) = colour_vit(tiny_vit), scenes()
    found = segment(model, images, masks)[0]
    expected = []
    for mask in (masks[0], masks[1], masks[3]):
        height, width = mask.shape
        box = np.zeros(mask.shape, dtype=np.bool_)
        top, left = round(height * (1 - 0.5**0.5) / 2), round(width * (1 - 0.5**0.5) / 2)
        box[top : height - top, left : width - left] = True
        objects = [v for v in np.unique(mask) if v not in (0, 255)]
        expected.append(np.mean([jaccard(box, mask, v, False) for v in objects]))
    assert found.area == 0.5
    assert found.per_image["centre-box"] == pytest.approx(expected)
    assert "fixed-head" not in found.scores and found.head is None
    small = np.zeros((24, 24), dtype=np.bool_)
    small[8:16, 8:16] = True  # a ninth of the area
    assert segment(model, [images[2]], [small], training=([images[2]], [small]))[0].area == 0.1


@pytest.mark.parametrize("source", ["rollout", "relevance"])
def test_rollout_and_relevance_are_one_map_of_all_blocks(source: Any, tiny_vit: Build) -> None:
    model, (images, masks) = colour_vit(tiny_vit), scenes()
    method = rollout if source == "rollout" else relevance
    expected = scores(method(model, inputs(model, images))[:, None], masks)
    found = segment(model, images, masks, source=source)[0]
    assert found.layer is None
    assert found.per_image["dino"] == pytest.approx([row[0] for row in expected])
    assert found.per_image["merged-mean"] == found.per_image["dino"]


def test_a_result_for_each_layer_and_mass_and_two_models_in_pairs(tiny_vit: Build) -> None:
    model, (images, masks) = colour_vit(tiny_vit), scenes()
    found = segment(model, images, masks, layers=None, masses=(0.5, 0.6))
    assert [(r.layer, r.mass) for r in found] == [(i, m) for i in range(3) for m in (0.5, 0.6)]
    assert found[5] == segment(model, images, masks)[0]
    same = paired_difference(found[5].per_image["dino"], found[5].per_image["dino"])
    assert (same.difference.value, same.p, same.differing) == (0, 1, 0)


def test_255_may_be_an_object(tiny_vit: Build) -> None:
    model, (images, _) = colour_vit(tiny_vit), scenes()
    mask = np.zeros((24, 24), dtype=np.uint8)
    mask[4:12, 5:20] = 255
    found = segment(model, images[2:3], [mask], void=None)[0]
    assert found.per_image == segment(model, images[2:3], [mask > 0])[0].per_image


def test_masks_are_read_from_palette_and_grey_files(tiny_vit: Build, tmp_path: Path) -> None:
    model, (images, masks) = colour_vit(tiny_vit), scenes()
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, (path, mask) in enumerate(zip(paths, masks, strict=True)):
        file = Image.fromarray(mask)
        if i % 2:
            file = file.convert("P")
            file.putdata(mask.flatten().tolist())
            file.putpalette(list(range(255, -1, -1)) * 3)
        file.save(path)
    assert segment(model, images, MaskFiles(paths)) == segment(model, images, masks)
    images[0].save(paths[0])
    with pytest.raises(UserError, match=r"0\.png is in colour"):
        segment(model, images, MaskFiles(paths))


def test_a_copied_student_finds_what_its_teacher_finds(tiny_vit: Build) -> None:
    teacher, (images, masks) = colour_vit(tiny_vit), scenes()
    student = student_like(teacher, num_classes=3).eval()
    network = Classifier(AttentionTransfer(teacher, student, [Copy()])).eval()
    found = segment(network, images, masks, vit=student)[0]
    assert found.per_image == segment(teacher, images, masks)[0].per_image


def test_mistakes_are_said(tiny_vit: Build) -> None:
    model, (images, masks) = colour_vit(tiny_vit), scenes()
    with pytest.raises(UserError, match=r"mask 1 is 40×56, but its image is 33×47"):
        segment(model, images[1:2] * 2, [masks[1], masks[0]])
    with pytest.raises(UserError, match="no mask has an object"):
        segment(model, images[2:3], masks[2:3])
    with pytest.raises(UserError, match="no mask has an object"):
        segment(model, images[2:3], [np.full((24, 24), 255, dtype=np.uint8)])
    with pytest.raises(UserError, match="4 images and 3 masks"):
        segment(model, images, masks[:3])
    with pytest.raises(UserError, match="choose shares above 0"):
        segment(model, images, masks, masses=[0.0])
    with pytest.raises(UserError, match="do not exist"):
        segment(model, images, masks, layers=[3])
