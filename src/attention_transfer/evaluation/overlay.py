"""Pictures of where a network looks, one for each image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.vit import AttentionCall, ViTSpec, capture

_SIDE = 224  # small images are enlarged to about this many pixels
_STRENGTH = 0.5  # of the colours over the image


class Overlays:
    """Writes, for each image, where the last block looks: the class token's attention, the mean over the heads.

    Without a class token it is the attention of the mean query of all patches.

    Args:
        folder: where the pictures go.
        vit: the vision transformer whose attention is drawn.
        spec: what it is.
    """

    def __init__(self, folder: Path, vit: nn.Module, spec: ViTSpec) -> None:
        self.folder = folder
        self.spec = spec
        self._vit = vit
        self._taken: set[Path] = set()

    @contextmanager
    def watching(self) -> Iterator[list[AttentionCall]]:
        """Collects the last block's attention of what runs inside."""
        with capture(self._vit, layers=[-1]) as calls:
            yield calls

    def maps(self, calls: list[AttentionCall]) -> NDArray[np.float32]:
        """What each patch gets, (B, rows, columns), of the calls that were collected."""
        row = calls[-1].query_row("class" if self.spec.class_token else "mean")
        maps_BHN = row.maps().squeeze(-2)
        patches_BN = maps_BHN.mean(dim=1)[:, self.spec.tokens.patches(maps_BHN.shape[-1])]
        found: NDArray[np.float32] = patches_BN.reshape(-1, *self.spec.grid).float().cpu().numpy()
        return found

    def write(self, place: Path, pixels: Tensor, patches: NDArray[np.float32]) -> Path:
        """Draw one picture and write it, whole or not at all.

        Args:
            place: the image's path below the folder; the picture has its name with the suffix .png, and a number
                where that is taken.
            pixels: what the network saw, uint8 (channels, height, width).
            patches: (rows, columns).
        """
        target = self._free(self.folder / place.with_suffix(".png"))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}")
        try:
            overlaid(pixels, patches).save(temporary, format="PNG")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)  # of a disk that is full
        return target

    def _free(self, target: Path) -> Path:
        number, found = 1, target
        while found in self._taken:
            number += 1
            found = target.with_name(f"{target.stem}-{number}.png")
        self._taken.add(found)
        return found


def overlay_problems(overlay: str | None, *, overwrite: bool) -> list[str]:
    """Why pictures can't go into a folder."""
    if overlay is None:
        return []
    folder = Path(overlay)
    if folder.exists() and not folder.is_dir():
        return [f"{overlay} is a file; name a folder for the pictures"]
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        return [f"{overlay} is not empty; choose another folder, or write into it with --overwrite"]
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        return [f"{overlay} can't be made: {there} is a file; choose another folder"]
    if not os.access(there, os.W_OK | os.X_OK):
        return [f"{overlay} can't be written: no permission in {there}; choose another folder"]
    return []


def overlaid(pixels: Tensor, patches: NDArray[np.float32]) -> Image.Image:
    """An image, in grey, under the attention that its patches get, from black (least) to yellow (most).

    Args:
        pixels: uint8 (channels, height, width), 1 or 3 channels.
        patches: (rows, columns), not negative; scaled by itself.

    Raises:
        UserError: the attention is not finite.
    """
    if not np.isfinite(patches).all():
        raise UserError("the attention is not finite, so that it can't be drawn; the run may have diverged")
    height, width = pixels.shape[-2:]
    factor = math.ceil(_SIDE / max(height, width))
    size = (width * factor, height * factor)
    array = np.ascontiguousarray(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy())
    # In grey, so that all colour is attention.
    image = Image.fromarray(array).convert("L").convert("RGB").resize(size, Image.Resampling.NEAREST)
    spread = float(patches.max() - patches.min())
    scaled = (patches - patches.min()) / spread if spread > 0 else np.zeros_like(patches)
    colours = (mpl.colormaps["inferno"](scaled)[..., :3] * 255).round().astype(np.uint8)
    return Image.blend(image, Image.fromarray(colours).resize(size, Image.Resampling.NEAREST), _STRENGTH)
