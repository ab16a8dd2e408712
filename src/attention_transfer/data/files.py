"""Image files, read as people see them, and what is wrong with those that can't be."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from attention_transfer.errors import UserError

UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is missing, no image, too large or damaged."""

_NO_COLOURS = {
    "F": "holds floats, whose range is not known; save it with 8 or 16 bits",
    "LAB": "is in the colour space Lab; save it in RGB",
}
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}


def read_image(path: str | Path) -> Image.Image:
    """Open an image file, upright, in its own mode.

    Raises:
        UserError: there is no such file, or it is not an image, or it is truncated, or it holds no colours.
    """
    try:
        with Image.open(path) as image:
            turned = upright(image)
    except FileNotFoundError as error:
        raise UserError(f"there is no image {path}; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; name image files") from error
    except UNREADABLE as error:
        raise UserError(f"{path} {'is empty' if _is_empty(Path(path)) else _reason(error)}") from error
    if turned.mode in _NO_COLOURS:
        raise UserError(f"{path} {_NO_COLOURS[turned.mode]}")
    return turned


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in mode "L" or "RGB", whatever it was.

    Grey values of 16 bits are divided by 256. Transparency is left out and the colours beneath it are kept, as
    torchvision and timm do (nothing is laid on white): what a model was trained with is what it should see.
    """
    if image.mode == mode:
        return image
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; Pillow warns when it has to leave transparency out itself
    return _eight_bits(image).convert(mode)


def damage(path: str | Path) -> str | None:
    """Why a file is not readable as an image, by its header and its end; None where both are in order.

    JPEG, PNG, GIF and WebP have an end that can be looked at; files of another kind, and those whose end looks wrong
    (some cameras append to it), are decoded. Damage in the middle of a file is found by reading it.
    """
    try:
        with Image.open(path) as image:
            if image.mode in _NO_COLOURS:
                return _NO_COLOURS[image.mode]
            if not _ends_well(image):
                image.load()
    except FileNotFoundError:
        return "is missing"
    except UNREADABLE as error:
        return "is empty" if _is_empty(Path(path)) else _reason(error)
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that can be read; convert it to PNG or JPEG"
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large ({error}); make it smaller"
    if isinstance(error, PermissionError):
        return "may not be read; change its permissions"
    return f"is damaged and can't be read ({error}); replace it"


def upright(image: Image.Image) -> Image.Image:
    """A decoded copy, turned as its EXIF note says; as it is where the note can't be read.

    Raises:
        OSError: and the others of `UNREADABLE`, where the pixels can't be decoded.
    """
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, struct.error):  # the pixels are there; a note that can't be read says no direction
        return image.copy()


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _ends_well(image: ImageFile.ImageFile) -> bool:
    """Whether the file of an image that was opened ends as it should; false where its kind has no known end."""
    file = image.fp
    if file is None:
        return False
    position, size = file.tell(), file.seek(0, os.SEEK_END)
    well = False
    if image.format == "WEBP":
        file.seek(4)
        well = size >= int.from_bytes(file.read(4), "little") + 8
    elif image.format in _ENDS:
        end = _ENDS[image.format]
        file.seek(size - len(end))
        well = file.read() == end
    file.seek(position)
    return well


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greys brought to 8 bits; Pillow's own conversion would cut everything above 255 to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64) // 256).clip(0, 255).astype(np.uint8))
