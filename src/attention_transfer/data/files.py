"""Image files, read as people see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from attention_transfer.errors import UserError


def read_image(path: str | Path) -> Image.Image:
    """Open an image file, upright.

    Raises:
        UserError: there is no such file, or it is not an image, or it is truncated.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).copy()
    except FileNotFoundError as error:
        raise UserError(f"there is no image {path}; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; name image files") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image that can be read; convert it to PNG or JPEG") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is damaged and can't be read ({error}); replace it") from error


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in mode "L" or "RGB", whatever it was."""
    return image if image.mode == mode else _eight_bits(image).convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greys brought to 8 bits; Pillow's own conversion would cut everything above 255 to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64) // 256).clip(0, 255).astype(np.uint8))
