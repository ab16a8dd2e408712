from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attention_transfer.data import ArrayImages, FileImages, Images, Split, Splits, Twin, digits, find_overlap
from attention_transfer.data import overlap as overlap_module
from attention_transfer.data.overlap import pixel_digest
from attention_transfer.errors import UserError

Write = Callable[..., list[Path]]
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Path, int]]]:
    """Files that were read, each with the byte from which on; nothing was found before."""
    calls: list[tuple[Path, int]] = []
    digest = overlap_module.file_digest

    def counted(path: Path, start: int = 0) -> bytes:
        calls.append((path, start))
        return digest(path, start)

    monkeypatch.setattr(overlap_module, "file_digest", counted)
    monkeypatch.setattr(overlap_module, "_FOUND", {})
    yield calls


def splits_of(train: Images, validation: Images, test: Images) -> Splits:
    first, second, third = (Split(part, np.zeros(len(part), dtype=np.int64)) for part in (train, validation, test))
    return Splits("set", ("a",), first, second, third)


def noise(count: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, 5, 4), dtype=np.uint8)


def test_equal_files_are_found_test_first(write: Write, tmp_path: Path) -> None:
    train, validation, test = (write(name, 4) for name in ("train", "validation", "test"))
    shutil.copy(train[2], validation[0])
    shutil.copy(train[1], test[3])
    shutil.copy(train[1], train[3])
    shutil.copy(validation[1], test[0])  # nobody trains on it
    Image.open(train[0]).save(tmp_path / "other.bmp")  # the same pixels in another file, which `inspect_data` finds
    images = (FileImages(train), FileImages(validation), FileImages([*test, tmp_path / "other.bmp"]))
    assert find_overlap(splits_of(*images)) == (
        Twin("test", test[3], (train[1], train[3])),
        Twin("validation", validation[0], (train[2],)),
    )


def test_images_that_are_not_trained_on_do_not_count(write: Write) -> None:
    train, validation, test = (write(name, 4) for name in ("train", "validation", "test"))
    shutil.copy(train[1], test[3])
    shutil.copy(train[2], test[2])
    shutil.copy(train[1], train[3])
    splits = splits_of(FileImages(train), FileImages(validation), FileImages(test))
    assert find_overlap(splits, np.array([0, 3])) == (Twin("test", test[3], (train[3],)),)
    assert find_overlap(splits, np.array([0])) == ()


def test_equal_ends_or_sizes_are_not_enough(tmp_path: Path, read: list[tuple[Path, int]]) -> None:
    rng = np.random.default_rng(0)
    end = rng.bytes(5000)
    contents = {"train": b"a" + end, "size": rng.bytes(5001), "end": b"b" + end, "short": end, "test": b"a" + end}
    paths = {name: tmp_path / name for name in contents}
    for name, content in contents.items():
        paths[name].write_bytes(content)
    held_out = FileImages([paths["size"], paths["end"], paths["short"], paths["test"]])
    found = find_overlap(splits_of(FileImages([paths["train"]]), FileImages([]), held_out))
    assert found == (Twin("test", paths["test"], (paths["train"],)),)
    assert sorted(path.name for path, start in read if start == 0) == ["end", "test", "train"]
    assert {start for _, start in read} == {0, 5001 - 4096}
    assert paths["short"] not in {path for path, _ in read}


def test_what_was_found_is_known_until_a_file_changes(write: Write, read: list[tuple[Path, int]]) -> None:
    train, validation, test = (write(name, 2, suffix="bmp") for name in ("train", "validation", "test"))
    splits = splits_of(FileImages(train), FileImages(validation), FileImages(test))
    assert find_overlap(splits) == ()
    assert read
    read.clear()
    assert find_overlap(splits, np.array([1])) == ()
    assert not read
    shutil.copy(train[1], test[0])
    assert find_overlap(splits, np.array([1])) == (Twin("test", test[0], (train[1],)),)


@pytest.mark.parametrize("moment", ["before", "between"])
def test_a_file_that_is_gone_is_named(moment: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation, test = (write(name, 2, suffix="bmp") for name in ("train", "validation", "test"))
    splits = splits_of(FileImages(train), FileImages(validation), FileImages(test))
    if moment == "before":
        test[1].unlink()
    else:
        monkeypatch.setattr(Path, "open", _refused)
    with pytest.raises(UserError, match=r"\.bmp can't be read \(.+\), but was there when the data set was loaded"):
        find_overlap(splits)


def _refused(path: Path, *_: Any, **__: Any) -> None:
    raise PermissionError(13, "Permission denied", str(path))


def test_images_in_memory_are_equal_by_pixels() -> None:
    pixels = noise(9)
    pixels[7], pixels[3] = pixels[1], pixels[2]
    parts = np.split(np.arange(9), [3, 6])
    splits = splits_of(*(ArrayImages(pixels[part]) for part in parts))
    assert find_overlap(splits) == (Twin("test", 1, (1,)), Twin("validation", 0, (2,)))
    assert find_overlap(splits, np.array([2])) == (Twin("validation", 0, (2,)),)


def test_pixels_of_another_shape_are_other_pixels() -> None:
    pixels = noise(1)[0]
    image, turned = (Image.fromarray(pixels.reshape(shape)) for shape in ((5, 4), (4, 5)))
    assert pixel_digest(image) != pixel_digest(turned)
    assert pixel_digest(image) == pixel_digest(image.convert("RGB"))


def test_archives_are_not_looked_into(caplog: pytest.LogCaptureFixture) -> None:
    class Archive:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Image.Image:
            raise AssertionError("an image was fetched")

        def take(self, indices: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Images:
            raise AssertionError("images were taken")

    with caplog.at_level(logging.DEBUG, logger="attention_transfer"):
        assert find_overlap(splits_of(Archive(), Archive(), Archive())) is None
    assert "are not compared, because their images are in archives" in caplog.text


def test_the_digits_have_no_image_in_two_splits() -> None:
    assert find_overlap(digits()) == ()
