"""Test and validation images that a run is trained on, too."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attention_transfer import compare, pretrain, train
from attention_transfer.data import ArrayImages, FileImages, Split, Splits
from attention_transfer.data import overlap as overlap_module
from attention_transfer.training import Recipe, RunFolder
from attention_transfer.training.inputs import keep_overlap

RECIPE = Recipe(epochs=1, batch_size=6, validate_every=1, workers=0)


@pytest.fixture(autouse=True)
def _unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attention_transfer.training.inputs._SAID", set())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes in three splits of 3 grey images a class."""
    rng = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        for name in ("cat", "dog"):
            place = tmp_path / "my pets" / part / name
            place.mkdir(parents=True)
            for number in range(3):
                Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(place / f"{number}.png")
    return tmp_path / "my pets"


def leak(folder: Path) -> None:
    """A training image of each class is a test image, too, and one a validation image."""
    for name in ("cat", "dog"):
        shutil.copy(folder / f"train/{name}/0.png", folder / f"test/{name}/2.png")
    shutil.copy(folder / "train/dog/1.png", folder / "val/dog/1.png")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [record for record in caplog.records if "training images, too: " in record.getMessage()]
    return [record.getMessage() for record in said if record.levelname == "WARNING"]


def test_a_run_warns_lists_and_counts(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    leak(folder)
    run = train("scratch", data=str(folder), recipe=RECIPE, out=str(tmp_path / "run"))
    (text,) = warnings(caplog)
    assert "my pets: among the 6 training images, too: 2 of 6 test images and 1 of 6 validation images (" in text
    assert f"({folder}/test/cat/2.png is {folder}/train/cat/0.png, " in text
    assert "so the reported accuracy may be too high" in text
    assert f"attention-transfer data '{folder}' finds equal pixels" in text
    assert text in (run.path / "log.txt").read_text()
    assert (run.path / "overlap.txt").read_text().splitlines() == [
        f"test\t{folder}/test/cat/2.png\t{folder}/train/cat/0.png",
        f"test\t{folder}/test/dog/2.png\t{folder}/train/dog/0.png",
        f"validation\t{folder}/val/dog/1.png\t{folder}/train/dog/1.png",
    ]
    assert json.loads((run.path / "summary.json").read_text())["overlap"] == {"test": 2, "validation": 1}
    card = (run.path / "model" / "README.md").read_text()
    assert "| test (6 images) | of these, also trained on: the values above may be too good | 2 |" in card


def test_a_run_without_overlap_says_nothing(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = train("scratch", data=str(folder), recipe=RECIPE, out=str(tmp_path / "run"))
    assert not warnings(caplog)
    assert not (run.path / "overlap.txt").exists()
    assert run.summary["overlap"] == {"test": 0, "validation": 0}


def test_images_without_a_label_do_not_count(folder: Path, tmp_path: Path) -> None:
    """Of each class one of three images is labelled, by a seed; only these are trained on."""
    leak(folder)
    for seed in range(3):
        run = train("scratch", data=str(folder), shots=1, seed=seed, recipe=RECIPE, out=str(tmp_path / f"{seed}"))
        labelled = (run.path / "labelled.txt").read_text().splitlines()
        tests = sum(path.endswith("/0.png") for path in labelled)
        assert run.summary["overlap"] == {"test": tests, "validation": f"{folder}/train/dog/1.png" in labelled}
        assert (run.path / "overlap.txt").exists() == (any(run.summary["overlap"].values()))


def test_a_teacher_that_saw_test_images_says_so(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    leak(folder)
    recipe = replace(RECIPE, label_smoothing=0.0)
    run = pretrain(data=str(folder), recipe=recipe, out=str(tmp_path / "teacher"))
    (text,) = warnings(caplog)
    assert "the loss on held-out images may be too low" in text
    assert run.summary["overlap"] == {"test": 2, "validation": 1}
    assert len((run.path / "overlap.txt").read_text().splitlines()) == 3


def test_a_comparison_reads_and_warns_once(
    folder: Path, teacher: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    leak(folder)
    read: list[Path] = []
    digest = overlap_module.file_digest

    def counted(path: Path, start: int = 0) -> bytes:
        read.append(path)
        return digest(path, start)

    monkeypatch.setattr(overlap_module, "_FOUND", {})
    monkeypatch.setattr(overlap_module, "file_digest", counted)
    out = str(tmp_path / "c")
    done = compare("scratch", seeds="0,1", shots="3", teacher=teacher, data=str(folder), recipe=RECIPE, out=out)
    assert len(done.rows) == 2
    train_reads = [path for path in read if path == folder / "train/cat/0.png"]
    assert len(train_reads) == 2  # its end, and the whole
    assert len(warnings(caplog)) == 1
    for row in done.rows:
        run = done.path / row.run
        assert "among the 6 training images, too" in (run / "log.txt").read_text()
        assert (run / "overlap.txt").is_file()


def arrays(copies: int) -> Splits:
    """Splits of 8 images in memory; so many test images are training images."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    pixels[16 : 16 + copies] = pixels[:copies]
    labels = np.arange(8) % 2
    train, validation, test = (Split(ArrayImages(part), labels) for part in np.split(pixels, 3))
    return Splits("set", ("a", "b"), train, validation, test)


def test_the_verb_data_is_not_named_for_a_folder_that_it_refuses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "flat").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "flat/0.png")
    folder = RunFolder(tmp_path / "run")
    for place in ("flat", "set"):
        keep_overlap(arrays(1), folder, data=str(tmp_path / place))
    flat, other = warnings(caplog)
    assert flat.endswith("overlap.txt lists them")
    assert other.endswith(f"attention-transfer data {tmp_path}/set finds equal pixels in different files, too")


def test_few_are_named_and_images_without_files_have_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(tmp_path / "run")
    counts = keep_overlap(arrays(5), folder, data="set")
    assert counts == {"test": 5, "validation": 0}
    assert "among the 8 training images, too: 5 of 8 test images (test 0 is train 0, " in caplog.text
    assert "test 2 is train 2, 2 more), so" in caplog.text
    assert (tmp_path / "run/overlap.txt").read_text() == "".join(f"test\t{n}\t{n}\n" for n in range(5))


def test_a_data_set_that_was_mended_has_no_list(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    keep_overlap(arrays(1), folder, data="set")
    assert (tmp_path / "run/overlap.txt").exists()
    assert keep_overlap(arrays(0), folder, data="set") == {"test": 0, "validation": 0}
    assert not (tmp_path / "run/overlap.txt").exists()


def test_odd_names_are_a_line_each(tmp_path: Path) -> None:
    paths = [os.fsencode(tmp_path) + name for name in (b"/a\t\n.png", b"/\xff\\.png", b"/c.png")]
    for path, content in zip(paths, (b"same", b"same", b"other"), strict=True):
        Path(os.fsdecode(path)).write_bytes(content)
    train, test, validation = (Split(FileImages([path]), np.zeros(1, dtype=np.int64)) for path in paths)
    folder = RunFolder(tmp_path / "run")
    keep_overlap(Splits("set", ("a",), train, validation, test), folder, data="set")
    assert (tmp_path / "run/overlap.txt").read_text() == f"test\t{tmp_path}/\\xff\\\\.png\t{tmp_path}/a\\t\\n.png\n"


@pytest.mark.parametrize("kind", ["archive", "second process"])
def test_what_was_not_looked_for_is_no_zero(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second_of_two: dict[str, str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    splits: Any = arrays(3)
    if kind == "archive":
        monkeypatch.setattr("attention_transfer.training.inputs.find_overlap", lambda *_: None)
    else:
        for name, value in second_of_two.items():
            monkeypatch.setenv(name, value)
    assert keep_overlap(splits, folder, data="set") is None
    assert not (tmp_path / "run/overlap.txt").exists()
