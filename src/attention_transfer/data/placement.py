"""Where a network's patches lie on an image as people see it: resize and crop undone.

Shapes: R and C rows and columns of patches, h and w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from attention_transfer.data.transforms import seen_box
from attention_transfer.vit import Tokens, ViTSpec

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Placement:
    """A network's grid of patches on one image.

    Attributes:
        size: of the image, (width, height), upright, in pixels.
        grid: patches, (rows, columns).
        box: what the network saw of the image, in its pixels; the grid fills it.
        prefix: names of the tokens before the patches, e.g. ("class", "register 1", "register 2").
        suffix: names of the tokens after them.
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    box: Box
    prefix: tuple[str, ...] = ()
    suffix: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: ViTSpec, size: tuple[int, int]) -> Placement:
        """Where the patches of a network lie on an image of a size (width, height) that `eval_transform` takes."""
        names = _named(spec.tokens)
        first = len(spec.tokens.prefix)
        return cls(size, spec.grid, seen_box(spec, size), names[:first], names[first:])

    @property
    def tokens(self) -> int:
        """Number of all tokens."""
        return len(self.prefix) + self.grid[0] * self.grid[1] + len(self.suffix)

    @property
    def patches(self) -> slice:
        """Where the patches are among the tokens."""
        return slice(len(self.prefix), self.tokens - len(self.suffix))

    def token(self, row: int, column: int) -> int:
        """The index of a patch among all tokens."""
        return len(self.prefix) + row * self.grid[1] + column

    def patch_at(self, x: float, y: float) -> tuple[int, int] | None:
        """The row and column of the patch at a point of the image, in pixels; `None` where the network saw nothing."""
        left, top, right, bottom = self.box
        row, column = (y - top) / (bottom - top) * self.grid[0], (x - left) / (right - left) * self.grid[1]
        inside = 0 <= row < self.grid[0] and 0 <= column < self.grid[1]
        return (int(row), int(column)) if inside else None

    def patch_box(self, row: int, column: int) -> Box:
        """Where a patch lies, in pixels of the image."""
        left, top, right, bottom = self.box
        width, height = (right - left) / self.grid[1], (bottom - top) / self.grid[0]
        return left + column * width, top + row * height, left + (column + 1) * width, top + (row + 1) * height

    def resized(self, size: tuple[int, int]) -> Placement:
        """The same on the image brought to another size (width, height)."""
        x, y = size[0] / self.size[0], size[1] / self.size[1]
        left, top, right, bottom = self.box
        return replace(self, size=size, box=(left * x, top * y, right * x, bottom * y))

    def on_grid(self, tokens_N: Floats) -> Floats:
        """Values of all tokens, (…, N), as those of the patches, (…, R, C)."""
        return tokens_N[..., self.patches].reshape(*tokens_N.shape[:-1], *self.grid)

    def on_image(self, map_RC: Floats, *, smooth: bool = False) -> Floats:
        """A map of the patches in the image's pixels, float32 (h, w); NaN where the network saw nothing.

        Args:
            map_RC: a value a patch, (R, C).
            smooth: interpolate between the patches' middles (bilinear); default is each pixel's own patch.
        """
        left, top, right, bottom = self.box
        width, height = self.size
        y_h = (np.arange(height, dtype=np.float64) + 0.5 - top) / (bottom - top) * self.grid[0]
        x_w = (np.arange(width, dtype=np.float64) + 0.5 - left) / (right - left) * self.grid[1]
        found_hw = np.full((height, width), np.nan, np.float32)
        rows = np.flatnonzero((y_h >= 0) & (y_h < self.grid[0]))
        columns = np.flatnonzero((x_w >= 0) & (x_w < self.grid[1]))
        map_RC = np.asarray(map_RC, np.float32)
        if smooth:
            values = _between(_between(map_RC, y_h[rows]).T, x_w[columns]).T
        else:
            values = map_RC[np.ix_(y_h[rows].astype(int), x_w[columns].astype(int))]
        found_hw[np.ix_(rows, columns)] = values
        return found_hw


def _between(values: Floats, at: NDArray[np.float64]) -> Floats:
    """Rows at places between rows, whose middles lie at 0.5, 1.5, …; beyond the outermost middles, these rows."""
    place = (at - 0.5).clip(0, len(values) - 1)
    below = place.astype(int)
    above = (below + 1).clip(max=len(values) - 1)
    share = (place - below).astype(np.float32)[:, None]
    between: Floats = values[below] * (1 - share) + values[above] * share
    return between


def _named(tokens: Tokens) -> tuple[str, ...]:
    """Names of the tokens that are no patches, with numbers where several are of a kind."""
    kinds = (*tokens.prefix, *("detection",) * tokens.suffix)
    return tuple(
        f"{kind} {kinds[: i + 1].count(kind)}" if kinds.count(kind) > 1 else kind for i, kind in enumerate(kinds)
    )
