"""What the verb `show` is told."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from attention_transfer.artifacts import EXPORT, MARKER
from attention_transfer.config.base import Config, model_problems
from attention_transfer.config.choices import Device, MapSource
from attention_transfer.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of image files, as `data.finder` has them, which loads torchvision."""

FIGURES = (".png", ".svg", ".pdf")
FRAMES = ".gif"

_MODEL = tuple(name for name in ("config.yaml", MARKER, *EXPORT) if name != "README.md")
_LOOKED_AT = 10_000  # files, before a folder counts as one without images
_PATCH = re.compile(r"(\d+) *, *(\d+)")
_POINT = re.compile(r"(\d+(?:\.\d+)?) *, *(\d+(?:\.\d+)?) *px")
_HEADS = re.compile(r"\d+( *, *\d+)*")


@dataclass(frozen=True, kw_only=True)
class Show(Config):
    """Settings of `show`."""

    models: list[str] = field(kw_only=False)
    """Networks, side by side: folders of runs, or models in the forms of `load_vit`, e.g. timm/<name>. On the command
    line, every word that is no image is one."""

    images: list[str] = field(kw_only=False)
    """Image files, folders (with all below them), or patterns in quotes, e.g. "photos/*.jpg"."""

    query: str | None = None
    """Whose attention: class, mean (of the patches' queries), a patch as ROW,COLUMN of each network's grid, from 0, the
    patch at a point of the image as X,Ypx, or another token by its name, e.g. "register 1"; default the class token
    where there is one."""

    source: MapSource = "attention"
    """attention of a block, or one map of all blocks: rollout, or relevance for a class."""

    layers: int | str | list[int] | None = None
    """Blocks whose attention is shown, from 0: n for the last n, "[0,5]", "first 6", "every 2", or all; default the
    last."""

    heads: str | list[int] | None = None
    """mean or max (as GTA) over heads, each, or some by their indices from 0, e.g. 2,5; default mean."""

    target: int | str | None = None
    """Class that relevance is for, by its name or index; default the predicted one."""

    repair: bool = False
    """Also show each network with a test-time register: the hidden units that make artefacts of patches, found on up to
    50 of the images, are moved to a token of their own. Plain ViTs of timm only."""

    difference: bool = False
    """Also show each further network minus the first, in colours around 0; with epochs, the run minus its teacher."""

    epochs: bool = False
    """Draw a frame for each epoch of one run whose weights are kept, the run's teacher beside it, all on one scale; a
    training keeps them with recipe.keep_epochs."""

    mass: float | None = None
    """Draw the outline of the smallest set of patches that has this share of what all patches have, e.g. 0.6."""

    masks: str | None = None
    """Folder of masks of the images, with the same names but for the suffix; what is not 0 in them gets an outline."""

    scale: Literal["all", "image", "network", "map"] = "image"
    """Which maps share a scale of colours: all, those of an image (of all networks), of a network (on all images), or
    none (map)."""

    clip: float = 0.99
    """Share of the values up to which a scale reaches; patches above it get its last colour."""

    smooth: bool = False
    """Interpolate between patches (bilinear) in place of showing each as it is."""

    overlay: bool = True
    """Draw maps over the image in grey; false draws them alone."""

    labels: list[str] | None = None
    """What to call the networks; default their names."""

    image_size: int | None = None
    """Input pixels, height and width; default each network's own."""

    device: Device = "auto"
    """Where to compute: auto, cpu, cuda or mps; auto takes a GPU where there is one."""

    out: str | None = None
    """File for the figure, .png, .svg or .pdf, or .gif with epochs; default attention.png or .gif on the command line,
    and none in Python."""

    overwrite: bool = False
    """Replace that file."""

    @classmethod
    def defaults(cls, given: Mapping[str, object]) -> dict[str, object]:
        """A command always writes its figure."""
        return {"out": f"attention{FRAMES}" if given.get("epochs") else "attention.png"}

    @classmethod
    def sorted_words(cls, words: Sequence[str]) -> dict[str, list[str]]:
        """Words of the command line that are images, and all others, which are models."""
        kinds = {word: is_image(word) for word in words}
        return {
            "models": [word for word in words if not kinds[word]],
            "images": [word for word in words if kinds[word]],
        }

    def problems(self) -> list[str]:
        """Words that mean nothing, numbers out of bounds, and settings without effect."""
        found = super().problems() + model_problems(self.models)
        if not self.images:
            found.append("no image is named; name a file with an image suffix, or a folder of images")
        if (
            isinstance(self.heads, str)
            and self.heads not in ("mean", "max", "each")
            and not _HEADS.fullmatch(self.heads)
        ):
            found.append(f"heads is {self.heads!r}; choose mean, max or each, or give indices, e.g. 2,5")
        if self.source != "attention":
            given = [name for name in ("layers", "heads") if getattr(self, name) is not None]
            found += [f"{name} has no effect on {self.source}, which is one map of all; leave it out" for name in given]
        if self.target is not None and self.source != "relevance":
            found.append(f"target has no effect on {self.source}; leave it out, or set source to relevance")
        if self.difference and len(self.models) < 2 and not (self.epochs or self.repair):
            found.append("a difference needs two networks; name another")
        for name in ("mass", "clip"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                found.append(f"{name} is {share}; give a share above 0 and at most 1")
        if self.labels is not None and len(self.labels) != len(self.models):
            found.append(f"there are {len(self.labels)} labels and {len(self.models)} networks; give a label for each")
        return found + self._epoch_problems()

    def _epoch_problems(self) -> list[str]:
        moving = self.out is not None and Path(self.out).suffix == FRAMES
        if not self.epochs:
            return [f"{self.out} has a frame for each epoch of a run; set epochs, or choose .png"] if moving else []
        found = []
        if len(self.models) > 1:
            found.append(f"epochs are those of one run, and {len(self.models)} networks are named; name the run alone")
        if not moving:
            given = "out is left out" if self.out is None else f"{self.out} is one figure"
            found.append(f"{given}, and epochs are frames of a {FRAMES}; name such a file with out")
        if self.scale not in ("all", "image"):
            found.append(f"scale is {self.scale}, but all epochs share a scale; choose all or image")
        if self.repair:
            found.append("repair and epochs exclude each other, as the neurons differ from epoch to epoch; choose one")
        if self.image_size is not None:
            found.append("image_size is given, but the weights of epochs fit the run's own size; leave it out")
        return found

    @property
    def blocks(self) -> int | str | list[int] | None:
        """The layers, by the rule of `vit.select`."""
        return None if self.layers == "all" else 1 if self.layers is None else self.layers

    @property
    def patch(self) -> tuple[int, int] | None:
        """The row and column of the patch that is the query."""
        match = _PATCH.fullmatch(self.query or "")
        return (int(match[1]), int(match[2])) if match else None

    @property
    def point(self) -> tuple[float, float] | None:
        """The point of the image, in its pixels, whose patch is the query."""
        match = _POINT.fullmatch(self.query or "")
        return (float(match[1]), float(match[2])) if match else None


def is_image(word: str) -> bool:
    """Whether a word of the command line is an image: a file or pattern with an image suffix, or a folder of images.

    A folder is searched for images only if no model lies in it, as a run has pictures of its own below it.

    Raises:
        UserError: it is a folder that holds both.
    """
    path = Path(word).expanduser()
    if not path.is_dir():
        return path.suffix.lower() in SUFFIXES or (glob.has_magic(word) and not path.exists())
    pictures = any(entry.suffix.lower() in SUFFIXES for entry in path.iterdir() if entry.is_file())
    model = any(any(path.glob(name)) for name in _MODEL)
    if pictures and model:
        raise UserError(f'{word} holds a model and images; name the images by a pattern, "{word}/*.png"')
    if pictures or model:
        return pictures
    below = islice((name for _, _, names in os.walk(path) for name in names), _LOOKED_AT)
    return any(Path(name).suffix.lower() in SUFFIXES for name in below)
