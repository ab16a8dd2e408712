"""Attention held against masks, by an independent count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import nn

from attention_transfer import AttentionTransfer, Copy, UserError, capture, student_like
from attention_transfer.data import Normalise, Split, eval_pixels
from attention_transfer.data.images import ArrayImages
from attention_transfer.evaluation import Classifier, looks
from attention_transfer.evaluation.foreground import foreground
from attention_transfer.vit import describe, load_vit


@given(hnp.arrays(np.float64, (3, 4), elements=st.floats(0.001, 1)), st.floats(0.05, 0.95))
def test_the_foreground_is_the_smallest_set_with_the_mass(attention: NDArray[np.float64], mass: float) -> None:
    found = foreground(torch.from_numpy(attention)[None], mass)[0].numpy()
    total, kept = attention.sum(), sorted(attention[found])
    assert sum(kept) >= mass * total - 1e-9
    assert sum(kept[1:]) < mass * total + 1e-9  # without its least patch it has less
    assert kept[0] >= attention[~found].max(initial=0)


def characters(image_size: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    return load_vit("builtin/vit_characters", pretrained=False, num_classes=5, image_size=image_size)


def scenes(count: int, side: int = 48) -> Split:
    draw = np.random.default_rng(0)
    masks = np.zeros((count, side, side), dtype=np.bool_)
    for mask in masks:
        top, left = draw.integers(0, side // 2, 2)
        mask[top : top + side // 2, left : left + side // 3] = True
    images = draw.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return Split(ArrayImages(images), np.zeros(count, dtype=np.int64), masks)


def counted(vit: Any, network: nn.Module, split: Split) -> float:
    """The protocol in plain loops over pixels, for images of the network's own size."""
    assert split.masks is not None
    spec, scores = describe(vit), []
    for i in range(len(split)):
        with torch.no_grad(), capture(vit) as calls:
            network(Normalise(spec)(eval_pixels(spec)(split.images[i]))[None])
        row = calls[-1].maps()[0, :, 0].mean(dim=0)[1:].numpy()
        chosen: set[int] = set()
        for patch in sorted(range(len(row)), key=lambda p: -row[p]):
            if sum(row[p] for p in chosen) >= 0.6 * row.sum():
                break
            chosen.add(patch)
        inter = union = 0
        for y in range(48):
            for x in range(48):
                found, there = (y // 8) * 6 + x // 8 in chosen, bool(split.masks[i, y, x])
                inter, union = inter + (found and there), union + (found or there)
        scores.append(inter / union)
    return float(np.mean(scores))


def test_the_iou_is_what_counting_pixels_gives() -> None:
    vit, split = characters(), scenes(5)
    assert looks(vit, vit, split, batch=2).iou == pytest.approx(counted(vit, vit, split), abs=1e-6)


def test_a_copied_student_is_measured_with_its_teachers_attention() -> None:
    teacher, split = characters(), scenes(4)
    torch.manual_seed(1)
    student = student_like(teacher, num_classes=3).eval()
    network = Classifier(AttentionTransfer(teacher, student, [Copy()])).eval()
    assert looks(network, student, split).iou == pytest.approx(looks(teacher, teacher, split).iou, abs=1e-6)
    assert looks(student, student, split).iou != pytest.approx(looks(teacher, teacher, split).iou, abs=1e-3)


def test_masks_are_cropped_as_images_are_and_lost_objects_do_not_count() -> None:
    vit = characters(image_size=96)  # which is cropped from 110 pixels
    split = scenes(3, side=110)
    assert split.masks is not None
    split.masks[:] = False
    split.masks[0, 7:103, 7:103] = True  # what is seen, exactly
    split.masks[1, :, :55] = True  # the left half
    split.masks[2, :3] = True  # cropped away
    # With all of the attention, all that is seen is foreground.
    assert looks(vit, vit, split, mass=1.0).iou == pytest.approx((1 + 0.5) / 2, abs=0.02)


def test_data_without_masks_is_refused() -> None:
    split = scenes(1)
    vit = characters()
    with pytest.raises(UserError, match="this data set has none"):
        looks(vit, vit, Split(split.images, split.labels))


def test_the_share_on_the_object_is_that_of_the_patches_attention_there() -> None:
    vit, split = characters(), scenes(3)
    assert split.masks is not None
    spec = describe(vit)
    shares = []
    for i in range(3):
        with torch.no_grad(), capture(vit, layers=[-1]) as calls:
            vit(Normalise(spec)(eval_pixels(spec)(split.images[i]))[None])
        row = calls[0].maps()[0, :, 0, 1:].mean(dim=0).reshape(6, 6).numpy()
        covered = split.masks[i].reshape(6, 8, 6, 8).mean(axis=(1, 3))
        shares.append((row * covered).sum() / row.sum())
    assert looks(vit, vit, split).share == pytest.approx(np.mean(shares), abs=1e-6)
