from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from attention_transfer.vit import InputFor, Tokens, ViTSpec, describe

Build = Callable[..., Any]

SPEC = ViTSpec(
    name="vit",
    library="timm",
    depth=3,
    heads=3,
    head_dim=8,
    width=24,
    tokens=Tokens(),
    grid=(2, 2),
    image_size=(8, 8),
    channels=3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    classes=5,
    pool=False,
    components=frozenset(),
)
channel = st.floats(0.05, 0.95)
colours = st.tuples(channel, channel, channel)


def pixels(height: int = 8, width: int = 8) -> Tensor:
    """Two colour images in [0, 1], before any normalisation."""
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(3))


def normalised(raw: Tensor, spec: ViTSpec) -> Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (spec.mean, spec.std))
    return ((raw.double() - mean) / std).float()


def resized(raw: Tensor, size: tuple[int, int]) -> Tensor:
    """By Pillow, a channel at a time; bicubic, with antialiasing where the image shrinks."""
    channels = [
        np.asarray(Image.fromarray(channel.numpy()).resize((size[1], size[0]), Image.Resampling.BICUBIC))
        for channel in raw.flatten(0, 1)
    ]
    return torch.from_numpy(np.stack(channels)).reshape(*raw.shape[:2], *size)


@settings(deadline=None)
@given(colours, colours, colours, colours)
def test_images_are_as_if_they_had_been_normalised_for_the_target(
    mean_t: Any, std_t: Any, mean_s: Any, std_s: Any
) -> None:
    target, source = replace(SPEC, mean=mean_t, std=std_t), replace(SPEC, mean=mean_s, std=std_s)
    actual = InputFor(target, source)(normalised(pixels(), source))
    torch.testing.assert_close(actual, normalised(pixels(), target), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("size", [(12, 12), (4, 4), (6, 14), (8, 5)])
@pytest.mark.parametrize("mean", [SPEC.mean, (0.1, 0.5, 0.9)])
def test_images_are_resized_as_pillow_does_it(size: tuple[int, int], mean: Any) -> None:
    """Before or after normalisation is the same: both are linear, and weights sum to one."""
    target = replace(SPEC, image_size=size, mean=mean)
    actual = InputFor(target, SPEC)(normalised(pixels(), SPEC))
    assert actual.shape == (2, 3, *size)
    torch.testing.assert_close(actual, normalised(resized(pixels(), size), target), atol=1e-5, rtol=1e-5)


def test_the_same_tensor_passes_where_nothing_differs() -> None:
    images = pixels()
    assert InputFor(SPEC, replace(SPEC, depth=7, grid=(4, 4), heads=2, library="hf"))(images) is images


def test_images_of_any_size_pass_where_both_were_made_for_one_size() -> None:
    images = pixels(16, 24)
    assert InputFor(SPEC, SPEC)(images) is images


def test_nothing_is_saved_or_trained_and_constants_move_along() -> None:
    module = InputFor(replace(SPEC, mean=(0.1, 0.2, 0.3), image_size=(4, 4)), SPEC)
    assert module.state_dict() == {}
    assert list(module.parameters()) == []
    images = pixels()
    single = module(images)
    double = module.to(torch.float64)(images.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, atol=1e-5, rtol=1e-5)


def test_grey_images_use_the_mean_of_the_colours(tiny_vit: Build) -> None:
    """As the descriptions of real models say it."""
    target = describe(tiny_vit(name="vit_small_patch14_reg4_dinov2"))
    source = describe(tiny_vit())
    assert target.mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    assert source.mean == (0.5,)
    raw = pixels()[:, :1]
    torch.testing.assert_close(InputFor(target, source)(normalised(raw, source)), normalised(raw, target))
