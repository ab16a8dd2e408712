"""The fifteen common corruptions of ImageNet-C, at five severities, on numpy, SciPy and Pillow.

Source: Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and perturbations, ICLR
2019. The parameters are the published ones, in pixels of images whose shorter side is `SIDE`. Three things are ours,
because the originals need photographs or a loop over pixels: frost is drawn, glass takes each pixel from a neighbour at
random in place of swapping them one by one, and the warp of elastic is composed with its displacement.

Shapes: h and w pixels, 3 channels, in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from attention_transfer.errors import UserError, nearest

SIDE = 256
"""Pixels of the shorter side of images that are corrupted: evaluation at 224 pixels crops from just these."""

SEVERITIES = (1, 2, 3, 4, 5)

Pixels = NDArray[np.floating[Any]]
Draw = np.random.Generator


def corrupted(image: Image.Image, kind: str, severity: int, draw: Draw) -> Image.Image:
    """A corrupted copy of an image.

    Args:
        image: of any mode; what is returned is RGB, of the same size.
        kind: a name of `CORRUPTIONS`.
        severity: from 1 to 5.
        draw: of all that is random.

    Raises:
        UserError: there is no such corruption or severity.
    """
    if kind not in CORRUPTIONS:
        raise UserError(f"there is no corruption {kind!r}; {nearest(kind, CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise UserError(f"severity is {severity}; choose from 1 to 5")
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return _image(CORRUPTIONS[kind](pixels, severity - 1, draw))


def fitted(image: Image.Image) -> Image.Image:
    """The image in RGB, resized so that its shorter side has `SIDE` pixels; nothing is cropped."""
    width, height = image.size
    scale = SIDE / min(width, height)
    size = (max(SIDE, round(width * scale)), max(SIDE, round(height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def _gaussian_noise(x: Pixels, level: int, draw: Draw) -> Pixels:
    return x + draw.normal(0, (0.08, 0.12, 0.18, 0.26, 0.38)[level], x.shape).astype(np.float32)


def _shot_noise(x: Pixels, level: int, draw: Draw) -> Pixels:
    photons = (60, 25, 12, 5, 3)[level]
    return (draw.poisson(x * photons) / photons).astype(np.float32)


def _impulse_noise(x: Pixels, level: int, draw: Draw) -> Pixels:
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    salt = (draw.random(x.shape) < 0.5).astype(np.float32)
    return np.where(draw.random(x.shape) < share, salt, x)


def _defocus_blur(x: Pixels, level: int, _: Draw) -> Pixels:
    radius, alias = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[level]
    reach = max(8, radius)
    across = np.arange(-reach, reach + 1)
    disk = (across[:, None] ** 2 + across**2 <= radius**2).astype(np.float64)
    disk = ndimage.gaussian_filter(disk, alias, radius=1 if radius <= 8 else 2)
    return _filtered(x, disk / disk.sum())


def _glass_blur(x: Pixels, level: int, draw: Draw) -> Pixels:
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    shuffled = _smooth(x, sigma)
    rows, columns = np.indices(x.shape[:2])
    for _ in range(times):
        down, right = draw.integers(-reach, reach, (2, *x.shape[:2]))
        shuffled = shuffled[(rows + down).clip(0, x.shape[0] - 1), (columns + right).clip(0, x.shape[1] - 1)]
    return _smooth(shuffled, sigma)


def _motion_blur(x: Pixels, level: int, draw: Draw) -> Pixels:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    return _streaked(x, radius, sigma, draw.uniform(-45, 45))


def _zoom_blur(x: Pixels, level: int, _: Draw) -> Pixels:
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[level]
    zooms = np.arange(1, end, step)
    summed = x + sum(_zoomed(x, float(zoom)) for zoom in zooms)
    return summed / np.float32(len(zooms) + 1)


def _snow(x: Pixels, level: int, draw: Draw) -> Pixels:
    mean, spread, zoom, threshold, radius, sigma, kept = (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    flakes = _zoomed(draw.normal(mean, spread, x.shape[:2]).astype(np.float32)[..., None], zoom)
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1).astype(np.float32)
    flakes = _streaked(flakes, radius, sigma, draw.uniform(-135, -45))
    pale = np.maximum(x, 1.5 * (x @ _GREY)[..., None] + 0.5)
    snowy: Pixels = kept * x + (1 - kept) * pale + flakes + flakes[::-1, ::-1]
    return snowy


def _frost(x: Pixels, level: int, draw: Draw) -> Pixels:
    kept, added = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[level]
    frozen: Pixels = kept * x + added * _ice(x.shape[0], x.shape[1], draw)
    return frozen


def _fog(x: Pixels, level: int, draw: Draw) -> Pixels:
    amount, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    fog = _plasma(x.shape[0], x.shape[1], decay, draw)[..., None]
    foggy: Pixels = (x + amount * fog) * (x.max() / (x.max() + amount))
    return foggy


def _brightness(x: Pixels, level: int, _: Draw) -> Pixels:
    # In HSV, a colour whose value grows keeps hue and saturation: all three channels grow by the same factor.
    value = x.max(axis=2, keepdims=True)
    brighter = (value + (0.1, 0.2, 0.3, 0.4, 0.5)[level]).clip(0, 1)
    bright: Pixels = np.where(value > 0, x * (brighter / np.maximum(value, 1e-6)), brighter)
    return bright


def _contrast(x: Pixels, level: int, _: Draw) -> Pixels:
    mean = x.mean(axis=(0, 1), keepdims=True)
    flat: Pixels = (x - mean) * np.float32((0.4, 0.3, 0.2, 0.1, 0.05)[level]) + mean
    return flat


def _elastic_transform(x: Pixels, level: int, draw: Draw) -> Pixels:
    side = 244  # as published
    strength, smoothing, jitter = (
        (2.0, 0.7, 0.1),
        (2.0, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    )[level]
    size = np.array(x.shape[:2])
    middle, reach = size // 2, min(x.shape[:2]) // 3
    corners = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + draw.uniform(-jitter * side, jitter * side, corners.shape)
    # The affine map that takes the moved corners back to where they were.
    back = np.linalg.solve(np.c_[moved, np.ones(3)], corners.astype(np.float64))
    shift = [
        ndimage.gaussian_filter(draw.uniform(-1, 1, x.shape[:2]), smoothing * side, mode="reflect", truncate=3)
        for _ in range(2)
    ]
    places = np.indices(x.shape[:2]) + strength * side * np.stack(shift)
    there = np.tensordot(back[:2], places, axes=([0], [0])) + back[2][:, None, None]
    return np.stack([ndimage.map_coordinates(c, there, order=1, mode="mirror") for c in np.moveaxis(x, 2, 0)], axis=2)


def _pixelate(x: Pixels, level: int, _: Draw) -> Pixels:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    image = _image(x)
    small = image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BOX), dtype=np.float32) / 255


def _jpeg_compression(x: Pixels, level: int, _: Draw) -> Pixels:
    packed = BytesIO()
    _image(x).save(packed, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    return np.asarray(Image.open(packed), dtype=np.float32) / 255


CORRUPTIONS: dict[str, Callable[[Pixels, int, Draw], Pixels]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
"""By the names of ImageNet-C's folders."""

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def _filtered(x: Pixels, kernel: NDArray[np.float64]) -> Pixels:
    return ndimage.correlate(x, kernel[..., None].astype(np.float32), mode="mirror")


def _smooth(x: Pixels, sigma: float) -> Pixels:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def _streaked(x: Pixels, radius: int, sigma: float, degrees: float) -> Pixels:
    """A blur along one direction, to one side, by half a Gaussian of this many pixels."""
    along = np.arange(2 * radius + 1)
    weights = np.exp(-(along**2) / (2 * sigma**2))
    rows = np.rint(along * math.sin(math.radians(degrees))).astype(int)
    columns = np.rint(along * math.cos(math.radians(degrees))).astype(int)
    kernel = np.zeros((4 * radius + 1, 4 * radius + 1))
    np.add.at(kernel, (2 * radius + rows, 2 * radius + columns), weights / weights.sum())
    # Where nothing is, is most of the kernel: shifted sums cost what the streak is long.
    reach = 2 * radius
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    streaked = np.zeros_like(x)
    for row, column in zip(*np.nonzero(kernel), strict=True):
        streaked += np.float32(kernel[row, column]) * padded[row : row + x.shape[0], column : column + x.shape[1]]
    return streaked


def _zoomed(x: Pixels, zoom: float) -> Pixels:
    """The middle of an image, enlarged to its size."""
    height, width = x.shape[:2]
    left, top = (length * (1 - 1 / zoom) / 2 for length in (width, height))
    box = (left, top, width - left, height - top)
    planes = [
        Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR, box=box)
        for plane in np.ascontiguousarray(np.moveaxis(x, 2, 0))
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def _plasma(height: int, width: int, decay: float, draw: Draw) -> Pixels:
    """A cloudy height map in [0, 1] by the diamond-square algorithm; each finer scale is `decay` times as weak."""
    side = 2 ** math.ceil(math.log2(max(height, width)))
    heights = np.zeros((side, side))
    step, spread = side, 100.0**2

    def rough(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return sums / 4 + draw.uniform(-spread, spread, sums.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = rough(pairs + np.roll(pairs, -1, axis=1))
        centres = heights[half::step, half::step]
        above = centres + np.roll(centres, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        beside = centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        heights[::step, half::step], heights[half::step, ::step] = rough(above), rough(beside)
        step, spread = half, spread / decay
    heights -= heights.min()
    plasma: Pixels = (heights / heights.max()).astype(np.float32)[:height, :width]
    return plasma


def _ice(height: int, width: int, draw: Draw) -> Pixels:
    """Bluish needles of ice in patches, (h, w, 3), in [0, 1]."""
    needles = np.zeros((height, width, 1), dtype=np.float32)
    for degrees in draw.uniform(0, 360, 6):
        seeds = (draw.random((height, width, 1)) < 0.004).astype(np.float32)
        needles = np.maximum(needles, 6 * _streaked(seeds, 16, 8, degrees))
    patches = _plasma(height, width, 2.0, draw)[..., None]
    ice = 0.35 + 0.65 * (needles.clip(0, 1) + patches).clip(0, 1) * patches
    blue: Pixels = (ice * np.array([0.85, 0.95, 1.0])).astype(np.float32)
    return blue
