"""Damaged images: every supported format with flipped bits, lost ends and foreign bytes, in files and in archives.

Each is a picture of the right shape, or damaged, and that is said; nothing else is ever raised. Seeded; some hundred
here, and as many as wanted by `ATTENTION_TRANSFER_FAULTS=100000 pytest tests/faults/test_images.py`.
"""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attention_transfer.data.decoding import FORMATS, Damaged, damage, decode, in_mode, read_image
from attention_transfer.errors import UserError

TRIES = int(os.environ.get("ATTENTION_TRANSFER_FAULTS", "700"))
WIDTH, HEIGHT = 24, 20
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)

CASES: dict[str, tuple[str, str, dict[str, object]]] = {
    "JPEG": ("JPEG", "RGB", {}),
    "JPEG, progressive, CMYK": ("JPEG", "CMYK", {"progressive": True}),
    "JPEG with EXIF": ("JPEG", "RGB", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0"}),
    "several JPEGs": ("MPO", "RGB", {"save_all": True}),
    "PNG": ("PNG", "RGBA", {}),
    "PNG, palette": ("PNG", "P", {"transparency": 3}),
    "PNG, 16 bits": ("PNG", "I;16", {}),
    "PNG, animated": ("PNG", "RGB", {"save_all": True}),
    "GIF, animated": ("GIF", "RGB", {"save_all": True}),
    "BMP": ("BMP", "RGB", {}),
    "BMP, 1 bit": ("BMP", "1", {}),
    "PPM": ("PPM", "RGB", {}),
    "PGM, 16 bits": ("PPM", "I;16", {}),
    "TIFF": ("TIFF", "RGB", {}),
    "TIFF, 16 bits": ("TIFF", "I;16", {}),
    "TIFF, LZW": ("TIFF", "RGBA", {"compression": "tiff_lzw"}),
    "TIFF, JPEG": ("TIFF", "RGB", {"compression": "jpeg"}),
    "TIFF, pages": ("TIFF", "L", {"save_all": True, "compression": "tiff_adobe_deflate"}),
    "WebP": ("WEBP", "RGB", {}),
    "WebP, lossless, animated": ("WEBP", "RGBA", {"lossless": True, "save_all": True}),
}


def encoded(kind: str, mode: str, options: dict[str, object]) -> bytes:
    """A picture as a file of this kind; of several pictures, if all are to be saved."""
    if mode == "I;16":
        picture = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(PIXELS[..., :3]).convert(mode)
    more = {"append_images": [picture.transpose(Image.Transpose.ROTATE_180)]} if "save_all" in options else {}
    file = io.BytesIO()
    picture.save(file, kind, **options, **more)
    return file.getvalue()


def spoilt(whole: bytes, rng: np.random.Generator) -> bytes:
    """The file with flipped bits, most of them near its beginning, without its end, or with other bytes in it."""
    content = bytearray(whole)
    kind = rng.integers(4)
    reach = len(whole) if rng.random() < 0.5 else min(len(whole), 80)
    if kind == 0:
        return bytes(content[: rng.integers(len(whole))])
    if kind == 1:
        start = int(rng.integers(reach))
        content[start : start + int(rng.integers(1, 9))] = rng.bytes(int(rng.integers(1, 9)))
        return bytes(content)
    for place in rng.integers(0, reach, rng.integers(1, 6)):
        content[place] = rng.integers(256) if kind == 2 else content[place] ^ (1 << int(rng.integers(8)))
    return bytes(content)


def seen(content: bytes, path: Path) -> str:
    """What becomes of an image, in a file and in an archive: a picture, or damaged; anything else fails."""
    path.write_bytes(content)
    verdict = damage(path)
    try:
        picture = in_mode(read_image(path), "RGB")
    except UserError as error:
        assert str(path) in str(error) or str(error).startswith("an image "), error
        assert "\n" not in str(error)
        with pytest.raises((Damaged, UserError)):
            in_mode(decode(content), "RGB")
        return "damaged"
    assert verdict is None, f"refused by a quick look, but read: {verdict}"
    pixels = np.asarray(picture)
    assert pixels.dtype == np.uint8 and pixels.shape == (picture.height, picture.width, 3) and pixels.size
    np.testing.assert_array_equal(pixels, np.asarray(in_mode(decode(content), "RGB")))
    return "a picture"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", CASES)
def test_a_damaged_file_is_a_picture_or_damaged_and_nothing_else(name: str, tmp_path: Path) -> None:
    whole, found = encoded(*CASES[name]), Counter[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of headers that make no sense
        assert seen(whole, tmp_path / "whole") == "a picture"
        for seed in range(max(1, TRIES // len(CASES))):
            content = spoilt(whole, np.random.default_rng((seed, len(name))))
            try:
                found[seen(content, tmp_path / "image.jpg")] += 1
            except Exception as error:
                error.add_note(f"{name}, seed {seed}: {content!r}")
                raise
    assert found["damaged"] > 0


@pytest.mark.parametrize("kind", ["EPS", "DDS", "ICO", "PCX", "TGA", "SGI", "PDF"])
def test_other_formats_are_refused_whatever_a_file_is_called(kind: str, tmp_path: Path) -> None:
    assert kind not in FORMATS
    path = tmp_path / "image.jpg"
    Image.fromarray(PIXELS[..., :3]).save(path, kind)
    assert "is not an image that can be read" in str(damage(path))
    with pytest.raises(UserError, match=r"image\.jpg is not an image that can be read \(BMP, GIF, JPEG"):
        read_image(path)
