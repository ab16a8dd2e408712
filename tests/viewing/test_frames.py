"""Moving pictures: their colours are those of the figures."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.viewing import save_frames

SIDE, STRIP = 300, 12  # pixels: of a photograph, and the width of a scale beside it


def pixels(seed: int) -> NDArray[np.uint8]:
    """A dark, colourful photograph, and beside it all colours of a scale on few pixels."""
    noise = np.random.default_rng(seed).normal(size=(SIDE, SIDE, 3))
    photo = (60 + 40 * noise).clip(0, 255).astype(np.uint8)
    scale = (255 * mpl.colormaps["coolwarm"](np.linspace(0, 1, SIDE))[:, None, :3]).repeat(STRIP, axis=1)
    return np.concatenate([photo, scale.astype(np.uint8)], axis=1)


def figure(seed: int) -> Figure:
    drawn = Figure(figsize=((SIDE + STRIP) / 100, SIDE / 100), dpi=100)
    axis = drawn.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.imshow(pixels(seed), aspect="auto", interpolation="nearest")
    return drawn


def test_a_scale_keeps_its_colours_in_every_frame(tmp_path: Path) -> None:
    """Median cut, which is Pillow's default, spends its colours on the photograph: 13 off on average."""
    out = save_frames(map(figure, range(3)), tmp_path / "moving.gif")
    scales = []
    with Image.open(out) as moving:
        assert getattr(moving, "n_frames", 1) == 3
        assert moving.info["loop"] == 0
        for frame in range(3):
            moving.seek(frame)
            assert moving.info["duration"] == (2000 if frame == 2 else 500)
            margin = (moving.height - SIDE) // 2
            found = np.asarray(moving.convert("RGB")).astype(int)[margin : margin + SIDE]
            scales.append(found[:, margin + SIDE + 2 : margin + SIDE + STRIP - 2])
    assert all(np.array_equal(scale, scales[0]) for scale in scales)
    exact = pixels(0)[:, SIDE + 2 : SIDE + STRIP - 2].astype(int)
    assert np.abs(scales[0] - exact).mean() < 8
