"""Attention drawn over the image it looks at."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from attention_transfer.viewing.style import style


def attention_grid(
    image: NDArray[np.uint8], attention: Mapping[str, NDArray[np.float32]], notes: Mapping[str, str] | None = None
) -> Figure:
    """One row a network, one column a layer: where it looks, over the image.

    Args:
        image: uint8, (height, width) or (height, width, 3).
        attention: for each network, the attention that the patches get in each layer, (layers, rows, columns). Each
            picture is scaled by itself, from its least to its most attended patch.
        notes: a few words for a network, shown under its name.

    Returns:
        The figure; the image alone stands in the first column.
    """
    layers = max(len(maps) for maps in attention.values())
    with style():
        figure = Figure(figsize=(1.15 * (layers + 1) + 0.8, 1.22 * len(attention) + 0.5), layout="constrained")
        axes = figure.subplots(len(attention), layers + 1, squeeze=False)
        for row, (name, maps) in zip(axes, attention.items(), strict=True):
            for axis in row:
                axis.set_axis_off()
            _show_image(row[0], image)
            label = f"{name}\n{(notes or {}).get(name, '')}".rstrip()
            row[0].text(-0.12, 0.5, label, transform=row[0].transAxes, ha="right", va="center", fontsize=9)
            for axis, patches in zip(row[1:], maps, strict=False):
                _show_image(axis, image)
                axis.imshow(
                    patches,
                    cmap="inferno",
                    alpha=0.72,
                    extent=(-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5),
                    interpolation="nearest",
                )
        axes[0][0].set_title("image", fontsize=9)
        for layer, axis in enumerate(axes[0][1:], start=1):
            axis.set_title(f"layer {layer}", fontsize=9)
    return figure


def _show_image(axis: Axes, image: NDArray[np.uint8]) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
