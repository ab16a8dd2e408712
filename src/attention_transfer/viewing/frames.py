"""Figures as the frames of one moving picture."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from attention_transfer.viewing.style import style
from attention_transfer.writing import whole_file

_SHOWN, _LAST = 500, 2000  # milliseconds: a frame, and the last one
_MARGIN = 0.1  # inches


def save_frames(figures: Iterable[Figure], path: Path) -> Path:
    """Write figures as a GIF that repeats, whole or not at all.

    All frames have the 256 colours of one palette, without dithering, so that a value has the same colour in each.

    Args:
        figures: at least one, all of one size; drawn one after the other, and held as pixels alone.
        path: the file.
    """
    box, drawn = None, []
    for figure in figures:
        # What lies outside of the first figure, as its title, is within the frame of all.
        box = box or figure.get_tightbbox().padded(_MARGIN)
        file = io.BytesIO()
        with style():
            figure.savefig(file, format="png", dpi=100, bbox_inches=box, facecolor="white")
        drawn.append(Image.open(file).convert("RGB"))
    # Median cut leaves the scales, which are few pixels, a dozen colours; the octree leaves no colour far from its own.
    together = Image.fromarray(np.concatenate([np.asarray(frame) for frame in drawn]))
    palette = together.quantize(256, Image.Quantize.FASTOCTREE)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in drawn)
    times = [_SHOWN] * len(others) + [_LAST]
    with whole_file(path) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=others, duration=times, loop=0)
    return path
