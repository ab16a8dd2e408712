"""Read image files as people see them, and say what is wrong with those that can't be read.

`opened` opens every image of this package, from a file, an archive or a table. It uses the decoders of a few formats
and bounds the size. Whatever a decoder raises then means that the image is damaged.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from attention_transfer.data.finder import NO_FILES
from attention_transfer.errors import UserError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The Pillow decoders that are used, whatever a file is called. Others start programs (EPS) or are little tested."""

LARGEST_IMAGE = 178_956_970
"""Pixels; twice Pillow's warning limit, 0.7 GB in memory. It holds even if a program has turned off Pillow's limit."""

LARGEST_FILE = 2**30
"""Bytes; some decoders read the whole file at once."""

_FAINT = 2**12
"""16-bit images whose values all stay below this have 12 bits or fewer, and would be almost black in 8 bits."""

_NO_COLOURS = {
    "F": "holds floats, whose range is not known; save it with 8 or 16 bits",
    "LAB": "is in the colour space Lab; save it in RGB",
}
_SIGNED = "holds integers that are signed or of 32 bits, whose range is not known; save it with 8 or 16 bits, unsigned"
_COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}


class Damaged(Exception):
    """Why an image can't be used, as the end of a sentence that begins with its name."""


class Missing(Damaged):
    """There is no file."""


@contextmanager
def opened(source: str | Path | bytes) -> Iterator[ImageFile.ImageFile]:
    """Open an image by its path, or from the bytes of a file; its pixels are not decoded yet.

    Raises:
        Damaged: it is not a regular file, not an image of `FORMATS`, or too large; or the block raised anything.
    """
    _check_size(source)
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > LARGEST_IMAGE:
                raise Damaged(f"is too large ({image.width:,}x{image.height:,} pixels); make it smaller")  # noqa: TRY301
            yield image
    except Damaged:
        raise
    except Exception as error:
        raise Damaged(_reason(error)) from error


def read_image(path: str | Path) -> Image.Image:
    """Open an image file, upright, in its own mode; of several pictures (an animation, pages) the first.

    Raises:
        UserError: there is no such file, or it is not an image, or it is truncated, or it holds no colours.
    """
    try:
        with opened(path) as image:
            return decoded(image)
    except Missing as error:
        raise UserError(f"there is no image {path}; check the path") from error
    except Damaged as error:
        raise UserError(f"{path} {error}") from error


def decode(data: bytes) -> Image.Image:
    """As `read_image`, of the bytes of a file.

    Raises:
        Damaged: they are no image, or can't be used.
    """
    with opened(data) as image:
        return decoded(image)


def decoded(image: ImageFile.ImageFile) -> Image.Image:
    """A decoded copy, rotated as its EXIF data say; not rotated if these can't be read.

    Raises:
        Damaged: it holds no colours, or uses so little of its 16 bits that it would be almost black.
        Exception: whatever the decoder raises; `opened` turns it into `Damaged`.
    """
    deep = any(";16" in str(tile) for tile in image.tile)  # Pillow keeps the upper 8 of 16 bits of colours
    image.load()
    if refused := _refused(image):
        raise Damaged(refused)
    if image.mode.startswith("I"):
        _eight_bits(np.asarray(image))
    elif deep and image.mode in ("LA", "RGB", "RGBA", "RGBX"):
        colours = np.asarray(image)[..., : 1 if image.mode == "LA" else 3]
        _check_bright(int(colours.max()) * 256)
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 – the pixels are there; a note that can't be read says no direction
        return image.copy()


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image of any mode to "L" or "RGB".

    16-bit greys are divided by 256. Transparency is dropped and the colours beneath it are kept (nothing is laid on
    white), as torchvision and timm do: a model should see what it was trained with.

    Raises:
        UserError: it holds floats, or integers that are not of 16 bits: their range is not known.
    """
    if image.mode == mode:
        return image
    if image.mode in _NO_COLOURS:
        raise UserError(f"an image {_NO_COLOURS[image.mode]}")
    if image.mode.startswith("I"):
        try:
            return Image.fromarray(_eight_bits(np.asarray(image))).convert(mode)
        except Damaged as error:
            raise UserError(f"an image {error}") from error
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; Pillow warns when it has to leave transparency out itself
    return image.convert(mode)


def damage(path: str | Path) -> str | None:
    """Why a file is not readable as an image, by its header and its end; `None` if both are intact.

    JPEG, PNG, GIF and WebP have an end that can be looked at; files of another kind, those with 16 bits, and those
    whose end looks wrong (some cameras append to it), are decoded. Damage in the middle of a file is found by reading.
    """
    try:
        with opened(path) as image:
            if refused := _refused(image):
                return refused
            if not _ends_well(image) or any(";16" in str(tile) for tile in image.tile):
                decoded(image)
    except Damaged as error:
        return str(error)
    return None


def _check_size(source: str | Path | bytes) -> None:
    """Refuse what must not be opened (a pipe would block forever), is empty, or is too large."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        try:
            status = os.stat(source)  # noqa: PTH116 – a million Path objects take a minute
        except FileNotFoundError as error:
            raise Missing("is missing") from error
        except (OSError, ValueError) as error:
            raise Damaged(_reason(error)) from error
        if not stat.S_ISREG(status.st_mode):
            raise Damaged(f"is a {NO_FILES.get(stat.S_IFMT(status.st_mode), 'special file')}; name image files")
        size = status.st_size
    if not size:
        raise Damaged("is empty")
    if size > LARGEST_FILE:
        raise Damaged(f"is too large ({size / 2**30:.1f} GB); make it smaller")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"is not an image that can be read ({', '.join(FORMATS)}); convert it to PNG or JPEG"
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return f"is too large ({str(error) or 'for the memory'}); make it smaller"
    if isinstance(error, PermissionError):
        return "can't be read: no permission; change its permissions"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"is damaged and can't be read ({reason[:200]}); replace it"


def _refused(image: Image.Image) -> str | None:
    """Why the pixels are no colours, by their mode. PGM and PNG have 16 bits where Pillow says "I"; TIFF has 32."""
    if image.mode in _NO_COLOURS:
        return _NO_COLOURS[image.mode]
    if image.mode == "I" and image.format == "TIFF":
        return _SIGNED
    if image.mode.startswith("I") or image.mode in _COLOURS:
        return None
    return f"has pixels of mode {image.mode}; save it in RGB"


def _eight_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """16-bit greys brought to 8 bits; Pillow's own conversion would cut everything above 255 to white.

    Raises:
        Damaged: they are not of 16 bits, or would be almost black.
    """
    wide = values.astype(np.int64)
    if wide.size and (wide.min() < 0 or wide.max() >= 2**16):
        raise Damaged(_SIGNED)
    _check_bright(int(wide.max(initial=0)))
    return (wide // 256).astype(np.uint8)


def _check_bright(largest: int) -> None:
    """Refuse 16-bit values that fit into 12 bits, unless all are 0."""
    if 0 < largest < _FAINT:
        raise Damaged(
            f"has 16 bits, but uses {largest:,} of 65,535 at most and would be almost black; scale it to all 16 bits, "
            "or to 8"
        )


def _ends_well(image: ImageFile.ImageFile) -> bool:
    """Whether the file of an opened image ends as its format should; false if the format has no known end."""
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
