from __future__ import annotations

import io
import os
import struct
import warnings
from pathlib import Path
from typing import Any, Never

import numpy as np
import pytest
from PIL import Image, ImageFile

from attention_transfer.data import read_image
from attention_transfer.data.decoding import LARGEST_FILE, damage, in_mode
from attention_transfer.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
KINDS = ["jpg", "png", "webp", "gif", "bmp", "ppm", "tif"]


def encoded(kind: str, **options: Any) -> bytes:
    """A picture as a file of this kind."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, {"jpg": "jpeg", "tif": "tiff"}.get(kind, kind), **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_is_in_order_and_one_that_lost_its_end_is_not(kind: str, tmp_path: Path) -> None:
    path, whole = tmp_path / f"image.{kind}", encoded(kind)
    path.write_bytes(whole)
    assert damage(path) is None
    for share in (0.2, 0.6, 0.97):
        path.write_bytes(whole[: int(share * len(whole))])
        assert damage(path) is not None


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of headers that make no sense
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_quick_check_refuses_can_not_be_read(kind: str, tmp_path: Path) -> None:
    """Flipped bytes in the header and at the end: there are no false alarms."""
    rng, path, whole, refused = np.random.default_rng(1), tmp_path / "image", encoded(kind), 0
    for _ in range(60):
        content = bytearray(whole)
        for place in [*rng.integers(0, 60, 2), *rng.integers(len(whole) - 8, len(whole), 2)]:
            content[place] = rng.integers(256)
        path.write_bytes(content)
        if damage(path) is not None:
            refused += 1
            with pytest.raises(UserError):
                read_image(path)
    assert kind == "ppm" or refused > 0


def test_bytes_behind_the_end_are_no_damage(tmp_path: Path) -> None:
    """As phones append them to a photograph."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded("jpg") + bytes(3000))
    assert damage(path) is None
    assert read_image(path).size == (64, 48)


def test_each_kind_of_damage_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "big.png").write_bytes(encoded("png"))
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "floats.tif")
    assert damage(tmp_path / "empty.jpg") == "is empty"
    assert "is not an image" in str(damage(tmp_path / "text.jpg"))
    assert damage(tmp_path / "nothing.jpg") == "is missing"
    assert "holds floats" in str(damage(tmp_path / "floats.tif"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # refused above twice that; the picture has 3,072
    assert "is too large" in str(damage(tmp_path / "big.png"))


def test_a_file_that_may_not_be_read_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: Any, **options: Any) -> Never:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "image.png").write_bytes(encoded("png"))
    monkeypatch.setattr(Image, "open", forbidden)
    assert damage(tmp_path / "image.png") == "can't be read: no permission; change its permissions"
    with pytest.raises(UserError, match=r"image\.png can't be read: no permission"):
        read_image(tmp_path / "image.png")


def test_an_image_of_floats_is_refused_by_name(tmp_path: Path) -> None:
    """Pillow's own conversion would make values between 0 and 1 black."""
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "floats.tif")
    with pytest.raises(UserError, match=r"floats\.tif holds floats"):
        read_image(tmp_path / "floats.tif")


def test_a_direction_that_can_not_be_read_leaves_the_image_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "image.webp"
    Image.fromarray(PIXELS).save(path, lossless=True, exif=b"Exif\x00\x00this is no direction")
    with pytest.raises(SyntaxError):
        Image.open(path).getexif()
    np.testing.assert_array_equal(np.asarray(read_image(path)), PIXELS)


def test_colours_beneath_transparency_are_kept() -> None:
    image = Image.fromarray(PIXELS)
    hidden = image.copy()
    hidden.putalpha(0)
    np.testing.assert_array_equal(np.asarray(in_mode(hidden, "RGB")), PIXELS)


def test_a_palette_with_transparency_gives_its_colours_without_a_warning(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS).quantize(16)
    image.save(tmp_path / "image.png", transparency=bytes([0, 128] + [255] * 14))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        colours = in_mode(read_image(tmp_path / "image.png"), "RGB")
    np.testing.assert_array_equal(np.asarray(colours), np.asarray(image.convert("RGB")))


def test_cmyk_is_brought_to_colours(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 30, 60)).convert("CMYK").save(tmp_path / "print.jpg", quality=100)
    colours = np.asarray(in_mode(read_image(tmp_path / "print.jpg"), "RGB")).astype(int)
    assert np.abs(colours - [200, 30, 60]).max() <= 3


def test_postscript_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's decoder of EPS starts Ghostscript."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / "x.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    assert "is not an image that can be read" in str(damage(path))
    with pytest.raises(UserError, match=r"x\.jpg is not an image that can be read"):
        read_image(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyError, ZeroDivisionError, AssertionError, NotImplementedError])
def test_whatever_a_decoder_raises_is_damage(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> Never:
        raise error("of this decoder")

    path = tmp_path / "image.bmp"
    path.write_bytes(encoded("bmp"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", fails)
    assert "is damaged and can't be read" in str(damage(path))
    with pytest.raises(UserError, match="of this decoder"):
        read_image(path)
    monkeypatch.setattr(Image, "open", fails)
    assert "is damaged and can't be read" in str(damage(path))


def test_sizes_are_bounded_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a program has turned off Pillow's own limit, as many do."""
    path = tmp_path / "bomb.bmp"
    content = bytearray(encoded("bmp"))
    content[18:26] = struct.pack("<ii", 60_000, 60_000)
    path.write_bytes(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert damage(path) == "is too large (60,000x60,000 pixels); make it smaller"
    with path.open("r+b") as file:
        file.truncate(LARGEST_FILE + 1)  # sparse
    assert damage(path) == "is too large (1.0 GB); make it smaller"


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name, kind in {"pipe": "named pipe", "zeros": "device", "folder": "folder"}.items():
        assert damage(tmp_path / f"{name}.png") == f"is a {kind}; name image files"
        with pytest.raises(UserError, match=rf"{name}\.png is a {kind}"):
            read_image(tmp_path / f"{name}.png")


RAMP = np.linspace(0, 1, 64)[None].repeat(8, 0)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_sixteen_bits_become_eight(name: str, tmp_path: Path) -> None:
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(tmp_path / name)
    grey = np.asarray(in_mode(read_image(tmp_path / name), "L"))
    assert np.abs(grey - RAMP * 255).max() <= 1


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("x.png", (RAMP * 4095).astype(np.uint16)),
        ("x.tif", (RAMP * 255).astype(np.uint16)),
        ("x.tif", (RAMP * 255).astype(np.int32)),
        ("x.tif", (RAMP * 2000 - 1000).astype(np.int32)),
        ("x.tif", (RAMP * 100_000).astype(np.int32)),
        ("x.tif", RAMP.astype(np.float32)),
    ],
)
def test_what_would_be_black_is_refused_when_the_set_is_loaded(name: str, values: Any, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / name)
    assert "bits" in str(damage(tmp_path / name))
    with pytest.raises(UserError, match=r"bits"):
        read_image(tmp_path / name)
    with pytest.raises(UserError, match="an image h"):
        in_mode(Image.fromarray(values), "RGB")


def test_a_black_image_of_sixteen_bits_is_one(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(tmp_path / "x.png")
    assert damage(tmp_path / "x.png") is None
    assert not np.asarray(in_mode(read_image(tmp_path / "x.png"), "L")).any()


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_the_first_of_several_pictures_is_used(kind: str, tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
    first.save(tmp_path / f"x.{kind}", save_all=True, append_images=[second])
    colours = np.asarray(in_mode(read_image(tmp_path / f"x.{kind}"), "RGB")).astype(int)
    assert np.abs(colours - [250, 0, 0]).max() <= 6
