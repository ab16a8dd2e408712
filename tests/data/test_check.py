from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attention_transfer import inspect_data
from attention_transfer.data import DATA, ArrayImages, Images, Split, Splits
from attention_transfer.errors import UserError

Write = Callable[..., list[Path]]


@pytest.fixture
def folder(write: Write, tmp_path: Path) -> Path:
    """Three splits of two classes: 4 and 3, 2 and 1, 2 and 2 images of 8 by 8 pixels."""
    for part, counts in {"train": (4, 3), "val": (2, 1), "test": (2, 2)}.items():
        for name, count in zip(("cat", "dog"), counts, strict=True):
            write(f"pets/{part}/{name}", count)
    return tmp_path / "pets"


def test_a_report_counts_what_is_there(folder: Path, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (30, 5)).save(folder / "train/cat/000.png")
    report = inspect_data(str(folder))
    assert (report.name, report.kind, report.classes) == ("pets", "class folders", ("cat", "dog"))
    assert {name: (split.images, split.per_class) for name, split in report.splits.items()} == {
        "train": (7, (3, 3.5, 4)),
        "validation": (3, (1, 1.5, 2)),
        "test": (4, (2, 2, 2)),
    }
    assert (report.width, report.height) == ((8, 8, 30), (5, 8, 8))
    assert report.modes == {"RGB": 13, "L": 1}
    assert (report.damaged, report.leaks, report.contradictions, report.repeats) == ({}, (), (), 0)
    printed = capsys.readouterr().out
    for text in ("2 classes ('cat', 'dog')", "damaged images: 0", "pictures in several splits: 0", "13 RGB, 1 L"):
        assert text in printed


def test_pictures_in_several_splits_or_classes_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(folder / "train/cat/000.png", folder / "test/cat/copy.png")
    Image.open(folder / "train/cat/001.png").save(folder / "train/dog/other.bmp")  # the same pixels in another file
    shutil.copy(folder / "val/cat/000.png", folder / "val/cat/again.png")
    report = inspect_data(str(folder))
    (leak,) = report.leaks
    assert (leak.splits, leak.classes, leak.files) == (("train", "test"), ("cat",), True)
    assert leak.images == (f"train: {folder}/train/cat/000.png", f"test: {folder}/test/cat/copy.png")
    (contradiction,) = report.contradictions
    assert (contradiction.splits, contradiction.classes, contradiction.files) == (("train",), ("cat", "dog"), False)
    assert report.repeats == 1
    printed = capsys.readouterr().out
    assert "pictures in several splits: 1" in printed
    assert f"'train', 'test', same file: train: {folder}/train/cat/000.png, test: {folder}/test/cat/copy.png" in printed
    assert "'cat', 'dog', same pixels" in printed
    report = inspect_data(str(folder), duplicates=False)
    assert (report.leaks, report.contradictions, report.repeats) == ((), (), 0)
    assert "several splits" not in capsys.readouterr().out


def test_long_lists_are_cut_on_the_terminal_and_whole_in_the_report(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(25):
        shutil.copy(folder / "train/cat/000.png", folder / f"test/dog/copy{number}.png")
        (folder / f"train/dog/empty{number}.png").touch()
    report = inspect_data(str(folder))
    assert [len(report.damaged), len(report.leaks[0].images)] == [25, 26]
    printed = capsys.readouterr().out
    assert "damaged images: 25" in printed
    assert "and 5 more, which --out lists" in printed
    assert "and 21 more" in printed
    assert printed.count("is empty") < 25
    assert printed.count("copy") <= 8


def test_a_photograph_turned_by_its_note_is_the_same_picture(folder: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (4, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels[::-1, ::-1]).save(folder / "train/cat/turned.png", exif=exif)
    Image.fromarray(pixels).save(folder / "test/cat/straight.png")
    assert len(inspect_data(str(folder)).leaks) == 1


def test_damage_in_the_middle_of_a_file_is_found(folder: Path, write: Write) -> None:
    """The check at load looks at the header and the end alone."""
    path, empty = folder / "train/cat/001.png", folder / "test/dog/000.png"
    content = bytearray(path.read_bytes())
    content[-60:-40] = bytes(20)
    path.write_bytes(content)
    empty.write_bytes(b"")
    report = inspect_data(str(folder))
    assert set(report.damaged) == {str(path), str(empty)}
    assert report.damaged[str(empty)] == "is empty"
    assert report.damaged[str(path)].startswith("is damaged and can't be read")
    empty.unlink()
    with pytest.raises(UserError, match=r"cat/001\.png is damaged"):
        inspect_data(str(folder), strict=True, out=str(folder / "report.json"))
    assert not (folder / "report.json").exists()


def test_a_report_is_written_whole_and_only_where_it_may(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    report = inspect_data(str(folder), out=str(out))
    assert json.loads(out.read_text()) == json.loads(json.dumps(asdict(report)))
    assert {path.name for path in tmp_path.iterdir()} == {"pets", "report.json"}
    for target, text in {
        str(out): "exists; choose another name",
        str(tmp_path / "report.txt"): "does not end in .json",
        str(tmp_path / "no" / "report.json"): "there is no folder",
    }.items():
        with pytest.raises(UserError, match=text):
            inspect_data(str(folder), out=target)
    inspect_data(str(folder), out=str(out), overwrite=True)


class Archive:
    """Images that come from one place, one at a time."""

    def __init__(self, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
        self.images = ArrayImages(pixels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        return self.images[index]

    def take(self, indices: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Images:
        return self.images.take(indices)


def test_images_without_files_are_named_by_their_index(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    pixels[5] = pixels[0]
    train, validation, test = (Split(Archive(pixels[start : start + 2]), np.array([0, 1])) for start in (0, 2, 4))
    monkeypatch.setitem(DATA, "archive", lambda: Splits("archive", ("a", "b"), train, validation, test))
    report = inspect_data("archive")
    (leak,) = report.leaks
    assert (leak.images, leak.files) == (("train: train 0", "test: test 1"), False)
    assert report.contradictions == (leak,)
    assert report.kind == "embedded"


def test_the_digits_have_no_picture_twice() -> None:
    report = inspect_data("digits")
    assert (report.width, report.height, report.modes) == ((8, 8, 8), (8, 8, 8), {"L": 1797})
    assert (report.leaks, report.contradictions, report.repeats) == ((), (), 0)
