"""A map of patches over an image, pixel by pixel."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from attention_transfer import UserError
from attention_transfer.data import Placement
from attention_transfer.viewing import Panel, PanelRow, Scale, attention_figure
from attention_transfer.viewing.overlays import checked_map, fitted, outline, overlaid, shaded

CROPPED = Placement((60, 50), (3, 5), (7, 4, 47, 40))
MAP = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)).numpy()


@pytest.mark.parametrize("smooth", [False, True])
def test_each_pixel_has_the_colour_of_the_resampled_map(smooth: bool) -> None:
    """Against torch's interpolation, on an image that is not square and was cropped."""
    grey = Image.effect_noise((60, 50), 80)
    drawn = overlaid(grey, CROPPED, MAP, Scale(0, 1), smooth=smooth)
    mode = "bilinear" if smooth else "nearest"
    shares = F.interpolate(torch.from_numpy(MAP)[None, None], size=(36, 40), mode=mode)[0, 0].numpy()[..., None]
    strength = 0.4 + 0.45 * np.sqrt(shares)
    colours = mpl.colormaps["inferno"](shares[..., 0])[..., :3]
    behind = np.asarray(grey, float)[..., None]
    expected = np.repeat(behind * 0.28 + 235 * 0.72, 3, axis=-1)
    expected[4:40, 7:47] = 255 * colours * strength + behind[4:40, 7:47] * (1 - strength)
    np.testing.assert_allclose(drawn, expected, atol=1)
    alone = overlaid(grey, CROPPED, MAP, Scale(0, 1), smooth=smooth, over=False)
    np.testing.assert_allclose(alone[4:40, 7:47], 255 * colours, atol=1)


def test_an_image_alone_keeps_its_colours_where_it_was_seen() -> None:
    drawn = shaded(Image.new("RGB", (60, 50), (200, 0, 0)), CROPPED)
    seen = (drawn == [200, 0, 0]).all(axis=-1)
    assert seen[4:40, 7:47].all()
    assert seen.sum() == 36 * 40


def test_scales_begin_at_0_or_lie_around_it() -> None:
    values = np.linspace(0, 1, 101, dtype=np.float32)
    clipped = Scale.of([values], clip=0.9)
    assert (clipped.low, clipped.high, clipped.beyond) == (0, pytest.approx(0.9), "max")
    around = Scale.of([values * -3, values], diverging=True)
    assert (around.low, around.high, around.beyond) == (-3, 3, "neither")
    assert around.strengths(around.shares(np.zeros(1, np.float32))) == 0, "no change has no colour"
    assert Scale.of([np.zeros(4, np.float32)]).high > 0


def test_an_outline_goes_around_the_set() -> None:
    chosen = np.zeros((3, 5), bool)
    chosen[0, 0] = chosen[0, 1] = True
    ends = {tuple(sorted((tuple(a), tuple(b)))) for a, b in outline(chosen, CROPPED)}
    corners = {((7, 4), (15, 4)), ((15, 4), (23, 4)), ((7, 16), (15, 16)), ((15, 16), (23, 16))}
    assert ends == {*corners, ((7, 4), (7, 16)), ((23, 4), (23, 16))}


def test_panels_of_a_row_are_equally_high() -> None:
    """Images of unlike shapes side by side, each in its own proportions."""
    images = [Image.new("L", size) for size in ((90, 60), (60, 60))]
    panels = [Panel(image, Placement(image.size, (2, 2), (0, 0, *image.size))) for image in images]
    figure = attention_figure([PanelRow(panels)], [])
    wide, high = figure.get_size_inches()
    boxes = [axis.get_position() for axis in figure.axes]
    assert boxes[0].height == pytest.approx(boxes[1].height)
    for box, image in zip(boxes, images, strict=True):
        assert box.width * wide / (box.height * high) == pytest.approx(image.width / image.height)


def test_small_images_are_enlarged_by_whole_numbers_and_large_ones_reduced() -> None:
    assert fitted(Image.new("L", (8, 6)), 100, 200).size == (104, 78)
    assert fitted(Image.new("I;16", (150, 10)), 100, 200).size == (150, 10)
    assert fitted(Image.new("RGB", (1000, 3)), 100, 200).size == (200, 1)


def test_a_map_that_is_not_finite_is_refused() -> None:
    with pytest.raises(UserError, match="the attention of this run is not finite"):
        checked_map(np.array([[np.nan]], np.float32), "this run")
