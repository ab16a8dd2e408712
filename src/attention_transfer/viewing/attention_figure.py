"""A figure of many maps over images: rows of panels, the colour bars of their scales, outlines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.data import Placement
from attention_transfer.data.placement import Box, Floats
from attention_transfer.errors import UserError
from attention_transfer.viewing.overlays import Scale, fitted, outline, overlaid, shaded
from attention_transfer.viewing.style import style

_WIDEST, _WIDE, _NARROWEST = 3.2, 11.0, 0.95  # inches: a panel at most, all panels of a row, a panel at least
_GAP, _LINE, _BAR, _BAR_ROOM = 0.07, 0.17, 0.14, 0.95  # inches: between panels, of text, a bar, and all that it needs
_RASTER = 250  # pixels an inch of the panels
_HIGHEST = 200  # inches; the largest PNG that matplotlib draws is twice as high
_WRAP = 22  # letters of a row's label
_SEEN_MASK, _OUTLINED, _ASKED = "#56b4e9", "#ffffff", "#00e5a0"  # outlines: of masks, of patches, of the query


@dataclass(frozen=True, eq=False)
class Panel:
    """A map over an image, or an image alone.

    Attributes:
        image: as people see it.
        placement: where the network's patches lie on it.
        patches: a value each, (R, C); `None` draws the image alone.
        scale: which colours the values get.
        outlined: which patches get an outline, (R, C).
        mask: which pixels get an outline, (h, w) as the image.
        query: the patch whose attention is shown, in the image's pixels.
        title: what stands above it.
    """

    image: Image.Image
    placement: Placement
    patches: Floats | None = None
    scale: Scale | None = None
    outlined: NDArray[np.bool_] | None = None
    mask: NDArray[np.bool_] | None = None
    query: Box | None = None
    title: str = ""


@dataclass(frozen=True, eq=False)
class PanelRow:
    """Panels of one image, side by side, and what stands before them; an empty place is `None`."""

    panels: Sequence[Panel | None]
    label: str = ""
    scales: Sequence[Scale] = ()


def attention_figure(
    rows: Sequence[PanelRow], scales: Sequence[Scale], *, smooth: bool = False, over: bool = True
) -> Figure:
    """Draw panels in rows. Those of a row are equally high, and on average have the common width.

    Args:
        rows: at least one; where each has one image alone, places in different rows are aligned from the left.
        scales: those of the whole figure, each with a colour bar; scales of a row have theirs beside it.
        smooth: interpolate between patches.
        over: draw maps over the image.

    Raises:
        UserError: the figure would be too high.
    """
    columns = max(len(row.panels) for row in rows)
    width = min(_WIDEST, max(_NARROWEST, (_WIDE - (columns - 1) * _GAP) / columns))
    labels = [textwrap.fill(row.label, _WRAP) for row in rows]
    left = max(max(map(len, label.split("\n")), default=0) for label in labels) * 0.085 + (0.15 if any(labels) else 0)
    heights = [_height(row.panels, width) for row in rows]
    above = [_LINE * max(panel.title.count("\n") + bool(panel.title) for panel in row.panels if panel) for row in rows]
    bars = max(len(scales), *(len(row.scales) for row in rows))
    total_w = left + columns * (width + _GAP) + bars * _BAR_ROOM
    total_h = sum(heights) + sum(above) + len(rows) * _GAP
    if total_h > _HIGHEST:
        raise UserError(
            f"the figure would be {total_h:,.0f} inches high, more than {_HIGHEST}; show fewer images or layers at a "
            "time, and no narrow strips"
        )
    with style():
        figure = Figure(figsize=(total_w, total_h))
        top = total_h
        for row, label, height, title in zip(rows, labels, heights, above, strict=True):
            top -= title + height
            start = left
            for panel in row.panels:
                wide = width if panel is None else height / _proportion(panel)
                if panel is not None:
                    _draw(_axes(figure, (start, top, wide, height)), panel, wide, smooth=smooth, over=over)
                start += wide + _GAP
            if label:
                spot = ((left - 0.1) / total_w, (top + height / 2) / total_h)
                figure.text(*spot, label, ha="right", va="center", fontsize=9)
            _bars(figure, row.scales, start, top, height, over=over)
            top -= _GAP
        length = min(total_h, max(2.2, heights[0]))
        beside = left + columns * (width + _GAP)
        _bars(figure, scales, beside, max(0.0, total_h - above[0] - length), min(length, total_h), over=over)
    return figure


def _height(panels: Sequence[Panel | None], width: float) -> float:
    """How high panels are that together are as wide as if each had this width."""
    there = [panel for panel in panels if panel is not None]
    return len(there) * width / sum(1 / _proportion(panel) for panel in there)


def _proportion(panel: Panel) -> float:
    return panel.image.height / panel.image.width


def _axes(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Axes in a box of inches: left, bottom, width, height."""
    wide, high = figure.get_size_inches()
    axis: Axes = figure.add_axes((box[0] / wide, box[1] / high, box[2] / wide, box[3] / high))
    axis.grid(visible=False)
    return axis


def _draw(axis: Axes, panel: Panel, inches: float, *, smooth: bool, over: bool) -> None:
    side = math.ceil(inches * _RASTER * max(1, _proportion(panel)))
    image = fitted(panel.image, side // 2, side)
    if panel.patches is None or panel.scale is None:
        pixels = shaded(image, panel.placement)
    else:
        pixels = overlaid(image, panel.placement, panel.patches, panel.scale, smooth=smooth, over=over)
    width, height = panel.image.size
    axis.imshow(pixels, extent=(0, width, height, 0), aspect="auto")
    if panel.outlined is not None:
        lines = outline(panel.outlined, panel.placement)
        for colour, thick in (("black", 1.6), (_OUTLINED, 0.8)):
            axis.add_collection(LineCollection(lines, colors=colour, linewidths=thick, capstyle="projecting"))
    if panel.mask is not None:
        middles = np.arange(width) + 0.5, np.arange(height) + 0.5
        axis.contour(*middles, panel.mask, levels=[0.5], colors=[_SEEN_MASK], linewidths=1.2)
    if panel.query is not None:
        left, top, right, bottom = panel.query
        for colour, thick in (("black", 2.4), (_ASKED, 1.2)):
            axis.add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=thick)
            )
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axis.set_title(panel.title, fontsize=9, pad=3)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _bars(figure: Figure, scales: Sequence[Scale], left: float, bottom: float, height: float, *, over: bool) -> None:
    """Colour bars beside each other, in inches."""
    for place, scale in enumerate(scales):
        axis = _axes(figure, (left + place * _BAR_ROOM + 0.05, bottom, _BAR, height))
        mappable = ScalarMappable(Normalize(scale.low, scale.high), scale.bar(over=over))
        bar = figure.colorbar(mappable, cax=axis, extend=scale.beyond, extendfrac=0.04)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=7, length=2)
        bar.set_label(textwrap.fill(scale.label, max(24, round(height * 16))), fontsize=8)
