"""A map of patches over the image that it belongs to, in the image's own pixels.

Shapes: R and C rows and columns of patches, h and w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.colors import ListedColormap
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.data import Placement
from attention_transfer.data.decoding import in_mode
from attention_transfer.data.placement import Floats
from attention_transfer.errors import UserError

Pixels = NDArray[np.uint8]

_FAINTEST, _STRONGEST = 0.4, 0.85  # of the colours over the image, at the ends of a scale
_SHADE, _SHADED = 235, 0.72  # the grey over what the network did not see, and how much of it
_MIDDLE = 128  # grey, over which the colours of a bar are laid


@dataclass(frozen=True)
class Scale:
    """Which colour a value gets.

    Attributes:
        low: the value with the first colour.
        high: the value with the last one; so have those above.
        label: what the values are.
        diverging: whether colours diverge from the middle, which is `low` + `high` = 0.
        clipped: whether there are values beyond its ends.
    """

    low: float
    high: float
    label: str = ""
    diverging: bool = False
    clipped: bool = False

    @classmethod
    def of(cls, maps: Sequence[Floats], *, label: str = "", diverging: bool = False, clip: float = 1.0) -> Scale:
        """From 0 to the largest value, or its share `clip` of all values; on both sides of 0 if it is diverging."""
        values = np.concatenate([np.abs(one).ravel() for one in maps])
        high = float(np.quantile(values, clip)) or float(values.max()) or 1.0  # all values may be 0
        return cls(-high if diverging else 0.0, high, label, diverging, clipped=bool(values.max() > high))

    @property
    def beyond(self) -> Literal["neither", "max", "both"]:
        """At which ends there are values beyond it, as a colour bar of matplotlib says it."""
        return "neither" if not self.clipped else "both" if self.diverging else "max"

    def shares(self, values: Floats) -> Floats:
        """Places on the scale, in [0, 1]."""
        spread = self.high - self.low
        return ((values - self.low) / spread if spread > 0 else np.zeros_like(values)).clip(0, 1)

    def colours(self, shares: Floats) -> Floats:
        """RGB in [0, 1], (…, 3): colours that are perceptually uniform and safe for colour-blind readers."""
        found: Floats = mpl.colormaps["coolwarm" if self.diverging else "inferno"](shares)[..., :3].astype(np.float32)
        return found

    def strengths(self, shares: Floats) -> Floats:
        """How much of the colours there is over an image: least where there is least to see."""
        distance = np.sqrt(np.abs(2 * shares - 1) if self.diverging else shares)
        faintest = 0 if self.diverging else _FAINTEST
        found: Floats = faintest + distance * np.float32(_STRONGEST - faintest)
        return found

    def bar(self, *, over: bool) -> ListedColormap:
        """The colours as they look over a middle grey, or alone."""
        shares = np.linspace(0, 1, 256, dtype=np.float32)
        colours = self.colours(shares)
        if over:
            strengths = self.strengths(shares)[:, None]
            colours = colours * strengths + _MIDDLE / 255 * (1 - strengths)
        return ListedColormap(colours)


def checked_map(map_RC: Floats, whose: str) -> Floats:
    """The map.

    Raises:
        UserError: it is not finite.
    """
    if not np.isfinite(map_RC).all():
        raise UserError(f"the attention of {whose} is not finite, so that it can't be drawn; the run may have diverged")
    return map_RC


def fitted(image: Image.Image, least: int, most: int) -> Image.Image:
    """An RGB image whose longer side is brought into bounds: enlarged by a whole number, or reduced."""
    image = in_mode(image, "RGB")
    longer = max(image.size)
    if longer < least:
        factor = math.ceil(least / longer)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if longer > most:
        size = (max(1, round(image.width * most / longer)), max(1, round(image.height * most / longer)))
        return image.resize(size, Image.Resampling.LANCZOS)
    return image


def shaded(image: Image.Image, placement: Placement) -> Pixels:
    """An image, (h, w, 3), in which what the network did not see is shaded."""
    pixels_hw3 = np.asarray(in_mode(image, "RGB"))
    unseen = np.isnan(placement.resized(image.size).on_image(np.zeros(placement.grid, np.float32)))[..., None]
    return np.where(unseen, _in_shade(pixels_hw3), pixels_hw3)


def overlaid(
    image: Image.Image,
    placement: Placement,
    map_RC: Floats,
    scale: Scale,
    *,
    smooth: bool = False,
    over: bool = True,
) -> Pixels:
    """An image in grey under the colours of a map; what the network did not see is shaded.

    Args:
        image: of any size and mode.
        placement: where the patches lie on it, at whatever size.
        map_RC: a value a patch.
        scale: which colour a value gets.
        smooth: interpolate between patches.
        over: false draws the colours alone.

    Returns:
        RGB, (h, w, 3), of the image's size: the seen pixel at a place has the colour of `placement.on_image(map_RC)`.
    """
    grey_hw = np.asarray(in_mode(image, "L"), np.float32)
    shares_hw = scale.shares(placement.resized(image.size).on_image(map_RC, smooth=smooth))
    unseen_hw = np.isnan(shares_hw)
    shares_hw[unseen_hw] = 0
    strengths_hw1 = scale.strengths(shares_hw)[..., None] if over else np.float32(1)
    mixed = 255 * scale.colours(shares_hw) * strengths_hw1 + grey_hw[..., None] * (1 - strengths_hw1)
    base_hw3 = _in_shade(np.repeat(grey_hw[..., None], 3, axis=-1))
    return np.where(unseen_hw[..., None], base_hw3, mixed.round().astype(np.uint8))


def _in_shade(pixels_hw3: NDArray[np.generic]) -> Pixels:
    shaded_hw3 = _SHADE * _SHADED + pixels_hw3.astype(np.float32) * (1 - _SHADED)
    return shaded_hw3.round().astype(np.uint8)


def outline(found_RC: NDArray[np.bool_], placement: Placement) -> list[list[tuple[float, float]]]:
    """The edges around a set of patches, as lines from point to point in the image's pixels."""
    left, top, right, bottom = placement.box
    padded = np.pad(found_RC, 1)
    lines = []
    for between_rows, edges in ((True, padded[1:] != padded[:-1]), (False, (padded[:, 1:] != padded[:, :-1]).T)):
        start, step, along, stride = (
            (top, (bottom - top) / found_RC.shape[0], left, (right - left) / found_RC.shape[1])
            if between_rows
            else (left, (right - left) / found_RC.shape[1], top, (bottom - top) / found_RC.shape[0])
        )
        for i, j in np.argwhere(edges[:, 1:-1]).tolist():
            level, ends = start + i * step, (along + j * stride, along + (j + 1) * stride)
            lines.append([(end, level) if between_rows else (level, end) for end in ends])
    return lines
