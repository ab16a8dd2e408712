"""The common corruptions: by hand where they can be, and each stronger from severity to severity."""

from __future__ import annotations

import colorsys
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from attention_transfer.data.corruptions import CORRUPTIONS, SEVERITIES, SIDE, corrupted, fitted
from attention_transfer.errors import UserError

# The published parameters themselves are not monotone here: of glass, the second severity shuffles once in place of
# twice; of fog, the fourth is as dense as the third; of elastic, the third no longer warps; frost gets weaker as the
# photograph does.
_NOT_BY_DISTANCE = {"glass_blur", "fog", "frost", "elastic_transform"}


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return fitted(Image.fromarray(load_sample_image("china.jpg")).crop((100, 0, 500, 400)))


def pixels(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image, dtype=np.float64) / 255


def of(kind: str, image: Image.Image, severity: int, seed: int = 0) -> Image.Image:
    return corrupted(image, kind, severity, np.random.default_rng(seed))


def test_the_fifteen_of_the_paper() -> None:
    assert len(CORRUPTIONS) == 15


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS.keys() - _NOT_BY_DISTANCE))
def test_each_severity_is_further_from_the_image(kind: str, photograph: Image.Image) -> None:
    distances = [np.square(pixels(of(kind, photograph, s)) - pixels(photograph)).mean() for s in SEVERITIES]
    assert all(low < high for low, high in pairwise(distances))


@pytest.mark.parametrize("kind", sorted(_NOT_BY_DISTANCE - {"elastic_transform"}))
def test_less_of_the_image_is_left_at_the_last_severity_than_at_the_first(kind: str, photograph: Image.Image) -> None:
    first, last = (
        np.corrcoef(pixels(of(kind, photograph, s)).ravel(), pixels(photograph).ravel())[0, 1] for s in (1, 5)
    )
    assert last < first - 0.005


def test_elastic_warps_at_two_severities_and_ripples_at_three(photograph: Image.Image) -> None:
    errors = [np.square(pixels(of("elastic_transform", photograph, s)) - pixels(photograph)).mean() for s in SEVERITIES]
    assert errors[0] < errors[1] > errors[2] < errors[3] < errors[4]


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_same_draw_gives_the_same_image_of_the_same_size(kind: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 72, 3), dtype=np.uint8))
    one, again = of(kind, image, 3), of(kind, image, 3)
    assert one.tobytes() == again.tobytes()
    assert (one.size, one.mode) == (image.size, "RGB")


def test_noises_have_their_published_spread() -> None:
    grey = Image.new("RGB", (256, 256), (128, 128, 128))
    assert np.std(pixels(of("gaussian_noise", grey, 1))) == pytest.approx(0.08, rel=0.02)
    assert np.std(pixels(of("shot_noise", grey, 1))) == pytest.approx((128 / 255 / 60) ** 0.5, rel=0.02)
    struck = pixels(of("impulse_noise", grey, 5))
    assert np.mean((struck == 0) | (struck == 1)) == pytest.approx(0.27, rel=0.02)


def test_brightness_is_added_to_the_value_of_hsv(photograph: Image.Image) -> None:
    small = photograph.resize((12, 12))
    found = pixels(of("brightness", small, 2)).reshape(-1, 3)
    for before, after in zip(pixels(small).reshape(-1, 3), found, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1)), abs=0.003)


def test_contrast_pixelate_and_jpeg_by_their_definitions(photograph: Image.Image) -> None:
    flat = pixels(of("contrast", photograph, 4))
    mean = pixels(photograph).mean(axis=(0, 1))
    assert flat == pytest.approx((pixels(photograph) - mean) * 0.1 + mean, abs=0.003)
    small = photograph.resize((SIDE // 4, SIDE // 4), Image.Resampling.BOX)
    assert of("pixelate", photograph, 5).tobytes() == small.resize(photograph.size, Image.Resampling.BOX).tobytes()
    packed = BytesIO()
    photograph.save(packed, "JPEG", quality=7)
    assert of("jpeg_compression", photograph, 5).tobytes() == Image.open(packed).tobytes()


def test_a_point_is_blurred_to_a_disk_and_to_half_a_streak() -> None:
    point = np.zeros((65, 65, 3), dtype=np.uint8)
    point[32, 32] = 255
    disk = pixels(of("defocus_blur", Image.fromarray(point), 1))[..., 0]
    rows, columns = np.nonzero(disk)
    assert np.hypot(rows - 32, columns - 32).max() <= 3.01
    assert (disk > 0).sum() == 29  # points of the grid in a circle of radius 3
    streak = pixels(of("motion_blur", Image.fromarray(point), 1))[..., 0]
    assert streak.argmax() == 32 * 65 + 32
    assert len(set(np.sign(np.nonzero(streak)[1] - 32)) - {0}) == 1


def test_sizes_and_modes() -> None:
    assert fitted(Image.new("L", (100, 50))).size == (512, 256)
    assert fitted(Image.new("RGBA", (300, 900))).size == (256, 768)


@pytest.mark.parametrize(
    ("kind", "severity", "says"), [("frog", 1, "did you mean 'fog'"), ("fog", 6, "choose from 1 to 5")]
)
def test_what_there_is_not(kind: str, severity: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        of(kind, Image.new("RGB", (9, 9)), severity)
