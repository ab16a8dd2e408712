"""Figures for all pairs of two networks' blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from attention_transfer.viewing.style import style

_WRITTEN = 12  # blocks, up to which each cell has its number
_BRIGHT = 0.6  # share of the scale from which on numbers are black


@dataclass(frozen=True)
class HeatMap:
    """A figure for each block of one network (rows) and each of another (columns), on a scale from 0.

    Rows may also be the epochs of the one network that the columns are of.

    Attributes:
        title: what it is.
        values: by rows.
        top: the end of the scale.
    """

    title: str
    values: Sequence[Sequence[float]]
    top: float


def heat_maps(
    panels: Sequence[HeatMap], *, rows: Sequence[int], columns: Sequence[int], ylabel: str, xlabel: str
) -> Figure:
    """Draw heat maps side by side, the first block of each network in the lower left.

    Args:
        panels: what is drawn.
        rows: indices of the blocks that are rows, or epochs.
        columns: of those that are columns.
        ylabel: whose blocks the rows are, or what else.
        xlabel: whose the columns are.
    """
    side = max(2.6, 0.36 * max(len(rows), len(columns)))
    with style():
        figure = Figure(figsize=(len(panels) * (side + 1.4), side + 1.0), layout="constrained")
        for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            image = axis.imshow(panel.values, vmin=0, vmax=panel.top, origin="lower", cmap="viridis")
            axis.grid(visible=False)
            axis.set_xticks(range(len(columns)), list(map(str, columns)))
            axis.set_yticks(range(len(rows)), list(map(str, rows)))
            axis.set_title(panel.title, fontsize=10)
            axis.set_xlabel(xlabel)
            figure.colorbar(image, ax=axis, shrink=0.85)
            if max(len(rows), len(columns)) <= _WRITTEN:
                for y, values in enumerate(panel.values):
                    for x, value in enumerate(values):
                        ink = "black" if value > _BRIGHT * panel.top else "white"
                        axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
        figure.axes[0].set_ylabel(ylabel)
    return figure
