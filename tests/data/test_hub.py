"""Data sets in the form of Hugging Face's `datasets`, as `save_to_disk` and image folders leave them."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from attention_transfer.data.hub import HubImages, load_hub
from attention_transfer.errors import UserError

CLASSES = ["cat", "dog"]


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The library, with a cache of its own and without the network."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    library.disable_progress_bars()
    yield library
    library.enable_progress_bars()


def picture(shade: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2), (shade, 0, 0)).save(buffer, "jpeg" if options else "png", **options)
    return buffer.getvalue()


def table(library: Any, labels: Sequence[int | None], *, first: int = 0, **more: Any) -> Any:
    """A data set of images whose shade is their number."""
    columns = {
        "pixels": [{"bytes": picture(n), "path": None} for n in range(first, first + len(labels))],
        "kind": list(labels),
        "caption": ["words"] * len(labels),
        **{name: values for name, (values, _) in more.items()},
    }
    features = {
        "pixels": library.Image(),
        "kind": library.ClassLabel(names=CLASSES),
        "caption": library.Value("string"),
        **{name: feature for name, (_, feature) in more.items()},
    }
    return library.Dataset.from_dict(columns, features=library.Features(features))


def saved(library: Any, path: Path, **parts: Any) -> str:
    library.DatasetDict(parts).save_to_disk(path)
    return str(path)


def shades(images: Any) -> list[int]:
    return [images[n].getpixel((0, 0))[0] for n in range(len(images))]


class Shades(Dataset[int]):
    """What a worker of a loader sees."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> int:
        return shades(self.images.take(np.array([index])))[0]


def test_three_splits_are_used_as_they_are(datasets: Any, tmp_path: Path) -> None:
    name = saved(
        datasets,
        tmp_path / "pets",
        train=table(datasets, [0, 1, 1]),
        validation=table(datasets, [1], first=10),
        test=table(datasets, [0, 1], first=20),
    )
    splits = load_hub(name)
    assert (splits.name, splits.classes) == ("pets", ("cat", "dog"))
    for split, expected, labels in (
        (splits.train, [0, 1, 2], [0, 1, 1]),
        (splits.validation, [10], [1]),
        (splits.test, [20, 21], [0, 1]),
    ):
        assert (shades(split.images), split.labels.tolist()) == (expected, labels)
        assert split.labels.dtype == np.int64
    taken = splits.train.take(np.array([2, 0])).take(np.array([1]))
    assert (shades(taken.images), taken.labels.tolist()) == ([0], [0])


def test_splits_that_are_not_there_are_cut(datasets: Any, tmp_path: Path) -> None:
    train = table(datasets, [0, 1] * 10)
    only = load_hub(saved(datasets, tmp_path / "only", train=train))
    assert [len(split) for split in (only.train, only.validation, only.test)] == [12, 4, 4]
    bare = tmp_path / "bare"
    train.save_to_disk(bare)
    assert shades(load_hub(str(bare)).test.images) == shades(only.test.images)
    valid = load_hub(saved(datasets, tmp_path / "valid", train=train, valid=table(datasets, [1], first=30)))
    assert [len(valid.train), len(valid.validation), shades(valid.test.images)] == [16, 4, [30]]
    every = shades(only.train.images) + shades(only.validation.images) + shades(only.test.images)
    assert sorted(every) == list(range(20))


@pytest.mark.parametrize("hidden", [-1, None])
def test_a_test_split_without_labels_is_not_used(hidden: int | None, datasets: Any, tmp_path: Path) -> None:
    name = saved(
        datasets,
        tmp_path / "hidden",
        train=table(datasets, [0, 1] * 5),
        validation=table(datasets, [1], first=30),
        test=table(datasets, [hidden, hidden], first=40),
    )
    splits = load_hub(name)
    assert shades(splits.test.images) == [30]
    assert "The test split is not used, because it has no labels." in splits.notes
    name = saved(datasets, tmp_path / "part", train=table(datasets, [0, 1, hidden]))
    with pytest.raises(UserError, match=r"1 of 3 images in the train split of .*part have no label; leave them out"):
        load_hub(name)


def test_splits_of_other_names_are_told(datasets: Any, tmp_path: Path) -> None:
    parts = {"train": table(datasets, [0, 1] * 5), "extra": table(datasets, [0]), "test": table(datasets, [1])}
    splits = load_hub(saved(datasets, tmp_path / "pets", **parts))
    assert "Splits of other names are not used: extra." in splits.notes
    with pytest.raises(UserError, match=r"has the splits extra, test, but none called train"):
        load_hub(saved(datasets, tmp_path / "none", **{name: parts[name] for name in ("extra", "test")}))


def test_a_folder_that_datasets_reads_itself(datasets: Any, tmp_path: Path) -> None:
    for part, number in (("train", 5), ("test", 1)):
        for shade, name in enumerate(CLASSES, 1):
            for n in range(number):
                path = tmp_path / "pets" / part / name / f"{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture(shade))
    splits = load_hub(str(tmp_path / "pets"))
    assert splits.classes == tuple(CLASSES)
    for split, number in ((splits.train, 8), (splits.validation, 2), (splits.test, 2)):
        assert shades(split.images) == [label + 1 for label in split.labels]
        assert len(split) == number


def test_images_are_upright(datasets: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = table(datasets, [0, 1])
    turned = datasets.Dataset.from_dict(
        {"pixels": [{"bytes": picture(0, exif=exif), "path": None}], "kind": [0], "caption": [""]},
        features=data.features,
    )
    splits = load_hub(saved(datasets, tmp_path / "pets", train=table(datasets, [0, 1] * 5), test=turned))
    assert splits.test.images[0].size == (2, 4)
    assert splits.train.images[0].size == (4, 2)


def test_other_processes_read_the_same(datasets: Any, tmp_path: Path) -> None:
    name = saved(datasets, tmp_path / "pets", train=table(datasets, [0, 1] * 10))
    images = load_hub(name).train.images
    assert isinstance(images, HubImages)
    assert shades(pickle.loads(pickle.dumps(images))) == shades(images)
    assert len(pickle.dumps(images)) < 20_000, "files are sent by their names"
    if "fork" in multiprocessing.get_all_start_methods():
        loader = DataLoader(Shades(images), batch_size=4, num_workers=2, multiprocessing_context="fork")
        assert [int(shade) for batch in loader for shade in batch] == shades(images)


def test_columns_are_chosen_by_name_where_there_are_several(datasets: Any, tmp_path: Path) -> None:
    colours = ([1, 0, 0, 0] * 5, datasets.ClassLabel(names=["red", "blue"]))
    name = saved(datasets, tmp_path / "pets", train=table(datasets, [0, 1] * 10, colour=colours))
    with pytest.raises(UserError, match=r"has several columns of classes, kind, colour; choose by .*pets#kind"):
        load_hub(name)
    splits = load_hub(f"{name}#colour")
    assert splits.classes == ("red", "blue")
    assert [n % 4 == 0 for n in shades(splits.test.images)] == splits.test.labels.astype(bool).tolist()
    with pytest.raises(UserError, match=r"no column 'caption' of type ClassLabel; there are: kind, colour"):
        load_hub(f"{name}#caption")


def test_columns_that_do_not_fit_are_named(datasets: Any, tmp_path: Path) -> None:
    train = table(datasets, [0, 1] * 5)
    blank = [{"bytes": picture(0), "path": None}] * 10
    for drop, sentence in (
        ("pixels", r"has no column of images, only kind, caption; save it with exactly one"),
        ("kind", r"has no column of type ClassLabel, only pixels, caption; make one with dataset.class_encode_column"),
    ):
        with pytest.raises(UserError, match=sentence):
            load_hub(saved(datasets, tmp_path / drop, train=train.remove_columns(drop)))
    two = table(datasets, [0, 1] * 5, depth=(blank, datasets.Image()))
    with pytest.raises(UserError, match=r"has several columns of images, pixels, depth; save it with exactly one"):
        load_hub(saved(datasets, tmp_path / "two", train=two))
    test = table(datasets, [0]).rename_column("kind", "species")
    with pytest.raises(UserError, match=r"the test split of .* has no column 'pixels' or 'kind', as training has"):
        load_hub(saved(datasets, tmp_path / "unlike", train=train, test=test))


def test_images_that_cannot_be_read_are_named(datasets: Any, tmp_path: Path) -> None:
    features = table(datasets, [0]).features
    rows = [{"bytes": picture(0, quality=90)[:200], "path": "tabby.jpg"}, None]
    broken = datasets.Dataset.from_dict({"pixels": rows, "kind": [0, 1], "caption": ["", ""]}, features=features)
    test = load_hub(saved(datasets, tmp_path / "pets", train=table(datasets, [0, 1] * 5), test=broken)).test
    with pytest.raises(UserError, match=r"the image in tabby.jpg \(row 0\) is damaged and can't be read"):
        test.images[0]
    with pytest.raises(UserError, match="row 1 has no image in column 'pixels'"):
        test.images[1]


def test_what_cannot_be_loaded_is_one_sentence(datasets: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = Path(saved(datasets, tmp_path / "damaged", train=table(datasets, [0, 1])))
    (damaged / "train" / "dataset_info.json").write_text("{")
    for name in (empty, damaged, "someone/no-such-set"):
        with pytest.raises(UserError, match=r"^datasets can't load \S+ \(.+\); check the name, the folder") as caught:
            load_hub(str(name))
        assert "\n" not in str(caught.value)


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"hf/ethz/food101 needs the package datasets; install it with pip install"):
        load_hub("ethz/food101")
