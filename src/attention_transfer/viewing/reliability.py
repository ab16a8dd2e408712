"""The reliability diagram: how often a classifier is right, by how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from attention_transfer.viewing.style import style

_ACCURACY, _GAP = "#0072b2", "#d55e00"


@dataclass(frozen=True)
class Bin:
    """Images of alike confidence, which lie above `low` and at most at `high`; `share` of all images are in it."""

    low: float
    high: float
    share: float
    confidence: float
    accuracy: float


def reliability_diagram(models: Mapping[str, Sequence[Bin]]) -> Figure:
    """Draw accuracy in bins of confidence, one panel for each model, above the share of the images in each bin.

    A model is calibrated where its bars end on the diagonal; what is missing to the mean confidence is hatched.

    Args:
        models: bins that hold images, by what to call the panel.
    """
    with style():
        figure = Figure(figsize=(0.6 + 3.4 * len(models), 4.4), layout="constrained")
        panels = figure.subplots(2, len(models), squeeze=False, sharex=True, height_ratios=(3, 1))
        for column, (title, bins) in enumerate(models.items()):
            above, below = panels[0][column], panels[1][column]
            lefts, widths = [b.low for b in bins], [b.high - b.low for b in bins]
            right = [b.accuracy for b in bins]
            bar = {"width": widths, "align": "edge", "linewidth": 0.6}
            above.bar(lefts, right, color=_ACCURACY, edgecolor="white", label="accuracy", **bar)
            gaps = [b.confidence - b.accuracy for b in bins]
            above.bar(
                lefts, gaps, bottom=right, color="none", edgecolor=_GAP, hatch="////", label="gap to confidence", **bar
            )
            above.plot([0, 1], [0, 1], "--", color="#7f7f7f", linewidth=1)
            above.set_title(title, fontsize=10)
            above.set_ylim(0, 1)
            below.bar(lefts, [b.share for b in bins], color="#7f7f7f", edgecolor="white", **bar)
            below.set_xlim(0, 1)
            below.set_xlabel("confidence")
            for axis in (above, below):
                axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panels[0][0].set_ylabel("accuracy")
        panels[1][0].set_ylabel("images")
        panels[0][0].legend(frameon=False, fontsize=8, loc="upper left")
    return figure
