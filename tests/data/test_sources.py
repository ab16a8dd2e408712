from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attention_transfer.data import (
    DATA,
    ArrayImages,
    FileImages,
    Split,
    Splits,
    data_slug,
    digits,
    find_source,
    load_data,
)
from attention_transfer.data.layouts import Layout, Published
from attention_transfer.errors import UserError

Write = Callable[..., list[Path]]
Files = Callable[[Split], list[Path]]


def test_a_folder_and_a_table_are_found_by_their_path(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {name: write(f"flowers/{name}", 10) for name in ("daisy", "rose")}
    table = tmp_path / "flowers.csv"
    table.write_text("path,label\n" + "".join(f"{p},{name}\n" for name, found in paths.items() for p in found))
    monkeypatch.chdir(tmp_path)
    for spec, kind in (("flowers", "class folders"), ("./flowers/", "class folders"), ("flowers.csv", "table")):
        assert find_source(spec).title == kind
        splits = load_data(spec)
        assert (splits.name, splits.classes) == ("flowers", ("daisy", "rose"))
        assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [12, 4, 4]


def test_home_is_known(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write(f"flowers/{name}", 5)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_data("~/flowers").name == "flowers"


def test_an_embedded_name_comes_before_a_folder(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write(f"digits/{name}", 5)
    monkeypatch.chdir(tmp_path)
    assert load_data("digits").classes == tuple("0123456789")
    assert load_data("./digits").classes == ("a", "b")


def test_strictness_reaches_the_files(write: Write, tmp_path: Path) -> None:
    write("a", 5)[0].write_bytes(b"")
    write("b", 5)
    assert len(load_data(str(tmp_path)).skipped) == 1
    with pytest.raises(UserError, match=r"000\.png is empty"):
        load_data(str(tmp_path), strict=True)


def test_what_is_not_there_is_refused_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowers").mkdir()
    for spec, text in {
        "digit": "no data set 'digit'; did you mean 'digits'",
        "./flower": "there is no folder ./flower; did you mean flowers?",
        f"{tmp_path}/zebras": "there is no folder .*zebras; check the path",
        "x/y/z": "there is no folder x/y/z, and no folder .*x/y; check",
        "flowers.csv": "there is no file flowers.csv",
    }.items():
        with pytest.raises(UserError, match=text):
            load_data(spec)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"notes\.txt is not a data set; name a folder"):
        load_data("notes.txt")


def layout(parts: dict[str, Split], *notes: str) -> Layout:
    """A layout that gives these splits of every folder."""
    return Layout("published", "Published", find=lambda path: path, read=lambda _: Published(["a", "b"], parts, notes))


@pytest.fixture
def published(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Splits:
    """Splits of two images a class and split, as the folder's layout gives them."""
    made = {}
    for part in ("train", "validation", "test"):
        paths = [*write(f"{part}/a", 2), *write(f"{part}/b", 2)]
        made[part] = Split(FileImages(paths), np.array([0, 0, 1, 1]))
    found = layout(made, "As its makers split it.")
    monkeypatch.setattr("attention_transfer.data.sources.find_layout", lambda path: found)
    return found.load(tmp_path)


def test_a_published_layout_comes_before_class_folders(published: Splits, tmp_path: Path) -> None:
    assert find_source(str(tmp_path)).title == "Published"
    splits = load_data(str(tmp_path))
    assert (splits.name, splits.notes) == ("published", published.notes)


def test_damaged_files_of_a_published_set_are_left_out(published: Splits, files: Files, tmp_path: Path) -> None:
    broken = [files(published.train)[1], files(published.test)[2]]
    for path in broken:
        path.write_bytes(b"")
    splits = load_data(str(tmp_path))
    assert set(splits.skipped) == {str(path) for path in broken}
    assert splits.train.labels.tolist() == [0, 1, 1]
    assert splits.test.labels.tolist() == [0, 0, 1]
    assert broken[0] not in files(splits.train) and broken[1] not in files(splits.test)
    assert any("Damaged files are left out: 2" in note for note in splits.notes)
    with pytest.raises(UserError, match="is empty"):
        load_data(str(tmp_path), strict=True)
    files(published.train)[0].write_bytes(b"")
    with pytest.raises(UserError, match="class 'a' needs an image to train with, but all 2 are damaged"):
        load_data(str(tmp_path))


def test_data_sets_can_be_added_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = replace(digits(), name="other")
    monkeypatch.setitem(DATA, "other", lambda: splits)
    assert load_data("other") is splits


def test_names_for_files_are_short() -> None:
    assert {spec: data_slug(spec) for spec in ("digits", "/data/flowers/", "pets.csv", "../x y", "hf/org/food101")} == {
        "digits": "digits",
        "/data/flowers/": "flowers",
        "pets.csv": "pets",
        "../x y": "x-y",
        "hf/org/food101": "hf-org-food101",
    }
    assert data_slug("torchvision/CIFAR10:~/data") == "torchvision-CIFAR10-data"


def test_libraries_are_asked_by_what_follows_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for library, loader in {"hf": "load_hub", "torchvision": "load_torchvision"}.items():
        monkeypatch.setattr(f"attention_transfer.data.sources.{loader}", lambda name, **_: replace(digits(), name=name))
        assert load_data(f"{library}/org/Name:root").name == "org/Name:root"


def test_tar_files_are_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attention_transfer.data.sources.load_shards", lambda path: replace(digits(), name=path.name))
    (tmp_path / "train.tar").touch()
    for place in (tmp_path, tmp_path / "train.tar", tmp_path / "train-{000..003}.tar"):
        assert find_source(str(place)).title == "tar shards"
        assert load_data(str(place)).name == place.name


def test_images_in_memory_are_not_looked_for_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split(ArrayImages(np.zeros((2, 4, 4), dtype=np.uint8)), np.array([0, 1]))
    found = layout({"train": split, "validation": split, "test": split})
    monkeypatch.setattr("attention_transfer.data.sources.find_layout", lambda path: found)
    splits = load_data(str(tmp_path))
    assert all(part is split for part in (splits.train, splits.validation, splits.test))
