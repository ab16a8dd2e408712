"""Where a network's patches lie on an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from attention_transfer.data import Placement, eval_pixels
from attention_transfer.vit import describe

SIZES = [(90, 90), (400, 120), (120, 400), (96, 64), (501, 333), (5000, 80), (30000, 3)]


def ramps(width: int, height: int) -> Image.Image:
    """An image whose red and green say where a pixel is: 0 at the left or top edge, 255 at the other."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray((np.stack([x, y, np.zeros_like(x)], axis=-1) * 255).round().astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image_size", [(64, 96), (32, 16)])  # with a centre crop, and whole
def test_a_patch_lies_where_its_pixels_come_from(
    tiny_vit: Callable[..., Any], size: tuple[int, int], image_size: tuple[int, int]
) -> None:
    spec = describe(tiny_vit(img_size=image_size, patch_size=8, in_chans=3))
    placement = Placement.of(spec, size)
    pixels_CHW = eval_pixels(spec)(ramps(*size)).double()
    seen_CRc = F.avg_pool2d(pixels_CHW, 8)
    assert placement.grid == tuple(seen_CRc.shape[1:])
    for row in range(placement.grid[0]):
        for column in range(placement.grid[1]):
            left, top, right, bottom = placement.patch_box(row, column)
            assert placement.patch_at((left + right) / 2, (top + bottom) / 2) == (row, column)
            for i, (start, end) in enumerate(((left, right), (top, bottom))):
                if size[i] < 80:
                    continue  # too few pixels to make a ramp of
                # The edges of the image are flattened by the interpolation, by half a pixel of it.
                tolerance = 1.5 + 255 * 0.5 / size[i]
                assert abs(float(seen_CRc[i, row, column]) - 255 * (start + end) / 2 / size[i]) < tolerance


def test_an_image_of_the_networks_size_is_seen_whole(tiny_vit: Callable[..., Any]) -> None:
    spec = describe(tiny_vit(img_size=(64, 96), patch_size=8, in_chans=3))
    assert Placement.of(spec, (96, 64)).box == (0, 0, 96, 64)
    cropped = Placement.of(spec, (192, 128))
    assert cropped.box[0] > 0
    assert cropped.box[1] > 0
    assert cropped.patch_at(1, 64) is None


def test_tokens_have_names_and_indices(tiny_vit: Callable[..., Any]) -> None:
    model = tiny_vit(name="vit_base_patch14_reg4_dinov2", img_size=16, patch_size=4, in_chans=3, num_heads=2)
    placement = Placement.of(describe(model), (16, 16))
    assert placement.prefix == ("class", "register 1", "register 2", "register 3", "register 4")
    assert placement.tokens == 5 + 16
    assert placement.token(1, 2) == 5 + 4 + 2
    tokens_N = np.arange(placement.tokens, dtype=np.float32)
    assert placement.on_grid(tokens_N)[1, 2] == placement.token(1, 2)


def test_a_map_covers_the_pixels_of_its_patches() -> None:
    """Against torch's own interpolation, of what was seen, in an image that has a margin of another width each side."""
    map_RC = torch.rand(3, 5, generator=torch.Generator().manual_seed(1))
    whole = Placement((40, 36), (3, 5), (0, 0, 40, 36))
    cropped = Placement((60, 50), (3, 5), (7, 4, 47, 40))
    for smooth, mode in ((False, "nearest"), (True, "bilinear")):
        expected = F.interpolate(map_RC[None, None], size=(36, 40), mode=mode)[0, 0].numpy()
        np.testing.assert_allclose(whole.on_image(map_RC.numpy(), smooth=smooth), expected, atol=1e-6)
        found = cropped.on_image(map_RC.numpy(), smooth=smooth)
        np.testing.assert_allclose(found[4:40, 7:47], expected, atol=1e-6)
        found[4:40, 7:47] = np.nan
        assert np.isnan(found).all()


def test_each_pixel_of_an_enlarged_image_has_the_value_of_its_patch() -> None:
    """Boxes that end between pixels, against `patch_at`, pixel by pixel."""
    placement = Placement((31, 23), (4, 3), (2.3, 1.7, 28.9, 20.2)).resized((47, 61))
    map_RC = np.arange(12, dtype=np.float32).reshape(4, 3)
    found = placement.on_image(map_RC)
    assert found.shape == (61, 47)
    for y in range(61):
        for x in range(47):
            patch = placement.patch_at(x + 0.5, y + 0.5)
            assert np.isnan(found[y, x]) if patch is None else found[y, x] == map_RC[patch]
