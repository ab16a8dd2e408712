"""Pictures of where a network looks, one for each image that is predicted."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import nn

from attention_transfer.data import Placement, read_image
from attention_transfer.data.decoding import Damaged, opened
from attention_transfer.errors import raise_all
from attention_transfer.evaluation.image_files import ImageFile
from attention_transfer.places import expanded, folder_problems, same_or_inside
from attention_transfer.viewing.overlays import Scale, checked_map, fitted, overlaid
from attention_transfer.vit import AttentionCall, ViTSpec, capture, patch_attention
from attention_transfer.writing import make_folder, sync, writing

log = logging.getLogger("attention_transfer")

# Pictures lie in a hidden folder of one of these prefixes until all are drawn. The first tells that everything else in
# the folder is of a command that did not end; with --overwrite it may be anything, and several commands may draw.
_UNFINISHED, _REPLACING = ".unfinished-", ".replacing-"

_SOFTWARE = "attention-transfer predict"  # the note by which a picture is recognised

_SMALLEST, _LARGEST = 224, 2048  # pixels: the longer side of a picture
_CLIP = 0.99  # share of the patches up to which the colours reach


class Overlays:
    """Draws the last block's attention over each image: the class token's, or else the mean query's; mean over heads.

    The pictures lie in a hidden folder until `settle` moves them into place; see `open`.

    Args:
        folder: the folder for the pictures.
        hidden: the folder in which they lie until then.
        vit: the vision transformer whose attention is drawn.
        spec: its description.
    """

    def __init__(self, folder: Path, hidden: Path, vit: nn.Module, spec: ViTSpec) -> None:
        self.folder = folder
        self.spec = spec
        self.settling = False
        self._hidden = hidden
        self._vit = vit
        self._taken: set[Path] = set()

    @classmethod
    @contextmanager
    def open(cls, folder: Path, vit: nn.Module, spec: ViTSpec, *, overwrite: bool) -> Iterator[Overlays]:
        """Make the folder; if the block fails before `settle`, nothing of it stays.

        Leftovers of a killed command are removed. A block that fails after `settle` has begun leaves a hidden folder,
        by which `overlay_problems` knows that the command may be given again.

        Args:
            folder: the folder for the pictures, which `overlay_problems` found sound.
            vit: the vision transformer whose attention is drawn.
            spec: its description.
            overwrite: whether pictures of the same names may be there.

        Raises:
            OSError: the folder can't be written.
        """
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f"{_UNFINISHED}*"):
                log.info("%s: pictures of a command that did not end are drawn anew", folder)
                shutil.rmtree(left)
            hidden = Path(tempfile.mkdtemp(dir=folder, prefix=_REPLACING if overwrite else _UNFINISHED))
        overlays = cls(folder, hidden, vit, spec)
        try:
            yield overlays
        except BaseException:
            if overwrite or not overlays.settling:
                _remove(hidden, made)
            raise
        shutil.rmtree(hidden)

    @contextmanager
    def watching(self) -> Iterator[list[AttentionCall]]:
        """Collect the last block's attention while the block runs."""
        with capture(self._vit, layers=[-1]) as calls:
            yield calls

    def maps(self, calls: list[AttentionCall]) -> NDArray[np.float32]:
        """The attention that each patch gets, (B, rows, columns)."""
        found: NDArray[np.float32] = patch_attention(calls[-1], self.spec).float().cpu().numpy()
        return found

    def write(self, file: ImageFile, patches: NDArray[np.float32]) -> Path:
        """Draw one picture, at the image's own size within bounds; what the network did not see is shaded.

        Args:
            file: the image; the picture gets its name with the suffix .png, and a number if that is taken.
            patches: (rows, columns), not negative; scaled by itself.

        Returns:
            Where the picture will be.

        Raises:
            UserError: the attention is not finite, or the image can't be read any more.
            OSError: it can't be written.
        """
        name = self._free(file.place.with_suffix(".png"))
        image = read_image(file.path)
        placement, scale = Placement.of(self.spec, image.size), Scale.of([checked_map(patches, "this run")], clip=_CLIP)
        colours = overlaid(fitted(image, _SMALLEST, _LARGEST), placement, patches, scale)
        with writing(self.folder / name):
            drawn = self._hidden / name
            drawn.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(colours).save(drawn, format="PNG", pnginfo=_note())
            sync(drawn)
        return self.folder / name

    def settle(self) -> None:
        """Move the pictures into place.

        Raises:
            UserError: a file of the same name was not drawn by this verb; no picture is moved then.
            OSError: a picture can't be moved.
        """
        raise_all([_foreign(self.folder / name) for name in sorted(self._taken) if not _is_drawn(self.folder / name)])
        self.settling = True
        for name in sorted(self._taken):
            target = self.folder / name
            with writing(target):
                make_folder(target.parent)
                (self._hidden / name).replace(target)
        for place in {(self.folder / name).parent for name in self._taken}:
            sync(place)

    def _free(self, name: Path) -> Path:
        number, found = 1, name
        while found in self._taken:
            number += 1
            found = name.with_name(f"{name.stem}-{number}.png")
        self._taken.add(found)
        return found


def overlay_problems(overlay: str | None, run: str, images: Sequence[str], *, overwrite: bool) -> list[str]:
    """Why the pictures for these images and this run can't go into a folder."""
    if overlay is None:
        return []
    folder = expanded(overlay)
    if problems := folder_problems(folder, data=images, models=[run]):
        return problems
    if folder.exists() and not folder.is_dir():
        return [f"{overlay} is a file; name a folder for the pictures"]
    if folder.is_dir() and not overwrite and _occupied(folder):
        return [f"{overlay} is not empty; choose another folder, or write into it with --overwrite"]
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        return [f"{overlay} can't be made: {there} is a file; choose another folder"]
    if not os.access(there, os.W_OK | os.X_OK):
        return [f"{overlay} can't be written: no permission in {there}, or it is read-only; choose another folder"]
    return []


def picture_problems(folder: Path, files: Sequence[ImageFile]) -> list[str]:
    """Why pictures can't go into a sound folder: it holds the images, or files that were not drawn by this verb."""
    if not folder.is_dir():
        return []
    for place in {os.path.dirname(os.path.realpath(file.path)) for file in files}:  # noqa: PTH120
        if same_or_inside(Path(place), folder):  # by a link
            return [f"images in {place}, which are read, lie in {folder}, which is written; choose another folder"]
    foreign = [name for file in files if not _is_drawn(folder / (name := file.place.with_suffix(".png")))]
    return [_foreign(folder / foreign[0])] if foreign else []


def _is_drawn(path: Path) -> bool:
    """Whether a path is free, or a picture that this verb drew."""
    if not os.path.lexists(path):
        return True
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with opened(path) as image:
            return image.info.get("Software") == _SOFTWARE
    except Damaged:
        return False


def _foreign(path: Path) -> str:
    return f"{path} was not drawn by this verb and is not replaced; choose another folder for the pictures"


def _occupied(folder: Path) -> bool:
    """Whether a folder holds anything but leftovers of commands that did not end."""
    names = [entry.name for entry in folder.iterdir()]
    if any(name.startswith(_UNFINISHED) for name in names):
        return False
    return not all(name.startswith(_REPLACING) for name in names)


def _remove(hidden: Path, made: list[Path]) -> None:
    """Remove the hidden folder, and the folders that were made for it."""
    shutil.rmtree(hidden)
    for place in made:
        if not any(place.iterdir()):
            place.rmdir()


def _note() -> PngInfo:
    note = PngInfo()
    note.add_text("Software", _SOFTWARE)
    return note
