"""One look for all figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from attention_transfer.writing import whole_file

# Okabe and Ito's palette, which colour-blind readers tell apart; a method keeps its colour in every figure.
COLOURS = {
    "scratch": "#7f7f7f",
    "teacher": "#000000",
    "finetune": "#0072b2",
    "copy": "#e69f00",
    "distill": "#d55e00",
    "gta": "#009e73",
    "tuned-distill": "#cc79a7",
    "linear-probe": "#56b4e9",
}
_OTHERS = ("#cc79a7", "#56b4e9")  # the palette's yellow can't be read on white


def colour(method: str) -> str:
    """The colour of a method."""
    return COLOURS.get(method, _OTHERS[sum(map(ord, method)) % len(_OTHERS)])


@contextmanager
def style() -> Iterator[None]:
    """Plain axes, readable type; other figures of the process keep their own look."""
    settings = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "figure.dpi": 100,
        "savefig.dpi": 150,
        "svg.fonttype": "none",
    }
    with mpl.rc_context(settings):
        yield


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, whole or not at all."""
    with whole_file(path) as file:
        write = partial(figure.savefig, file, format=path.suffix[1:], bbox_inches="tight", facecolor="white")
        if path.suffix == ".png":
            write(pil_kwargs={"optimize": True})
        else:
            write()
    return path
