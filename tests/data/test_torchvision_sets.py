"""torchvision's sets: splits and labels as torchvision itself gives them, and sets that are not there."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from attention_transfer.data import FileImages
from attention_transfer.data.torchvision_sets import SETS, load_torchvision
from attention_transfer.errors import UserError


def image(path: Path, shade: int = 0, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 2), (shade, 0, 0)).save(path, **options)


def cifar10(root: Path) -> None:
    """Images whose shade is their number, in the files of the archive."""
    folder = root / datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)
    first = 0
    for name, _ in [*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list]:
        data = np.repeat(np.arange(first, first + 10, dtype=np.uint8), 3072).reshape(10, 3072)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [n % 10 for n in range(10)]}))
        first += 10
    names = [f"class {n}" for n in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Miniatures do not have the checksums of the real files."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)


def eurosat(root: Path) -> None:
    for name in ("AnnualCrop", "Forest"):
        for n in range(10):
            image(root / "eurosat" / "2750" / name / f"{name}_{n}.jpg")


def imagenette(root: Path) -> None:
    for part, number in (("train", 5), ("val", 1)):
        for wnid in ("n01440764", "n02102040"):
            for n in range(number):
                image(root / "imagenette2" / part / wnid / f"{wnid}_{n}.JPEG")


def food101(root: Path) -> None:
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    for part, numbers in (("train", range(5)), ("test", range(5, 7))):
        listed = {name: [f"{name}/{n}" for n in numbers] for name in ("waffles", "apple_pie")}
        (folder / "meta" / f"{part}.json").write_text(str(listed).replace("'", '"'))
        for name in (entry for entries in listed.values() for entry in entries):
            image(folder / "images" / f"{name}.jpg")


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    for part, numbers in (("trainval", range(5)), ("test", range(5, 7))):
        names = [(f"{name}_{n}", label) for label, name in enumerate(("Bengal", "beagle"), 1) for n in numbers]
        lines = [f"{name} {label} 1 1\n" for name, label in names]
        (folder / "annotations" / f"{part}.txt").write_text("".join(lines))
        for name, _ in names:
            image(folder / "images" / f"{name}.jpg", exif=exif)


def test_sets_in_memory(unchecked: None, tmp_path: Path) -> None:
    cifar10(tmp_path)
    splits = load_torchvision(f"CIFAR10:{tmp_path}")
    assert (splits.name, splits.classes) == ("cifar10", tuple(f"class {n}" for n in range(10)))
    shades = [[split.images[n].getpixel((0, 0)) for n in range(len(split))] for split in (splits.train, splits.test)]
    assert shades[1] == [(n, n, n) for n in range(50, 60)]
    assert splits.test.labels.tolist() == list(range(10))
    assert [shade[0] % 10 for shade in shades[0]] == splits.train.labels.tolist()  # type: ignore[index]
    assert (len(splits.train), len(splits.validation)) == (40, 10), "four and one of the five of each class"
    again = pickle.loads(pickle.dumps(splits.test.take(np.array([3, 1])).images))
    assert [again[n].getpixel((0, 0))[0] for n in range(len(again))] == [53, 51]


@pytest.mark.parametrize(
    ("name", "build", "sizes", "classes"),
    [
        ("EuroSAT", eurosat, (12, 4, 4), ("AnnualCrop", "Forest")),
        ("Imagenette", imagenette, (8, 2, 2), ("tench, Tinca tinca", "English springer, English springer spaniel")),
        ("Food101", food101, (8, 2, 4), ("apple_pie", "waffles")),
        ("OxfordIIITPet", pets, (8, 2, 4), ("Bengal", "Beagle")),
    ],
)
def test_sets_of_files(name: str, build: Any, sizes: tuple[int, ...], classes: tuple[str, ...], tmp_path: Path) -> None:
    build(tmp_path)
    splits = load_torchvision(f"torchvision/{name}:{tmp_path}")
    every = (splits.train, splits.validation, splits.test)
    assert tuple(map(len, every)) == sizes
    assert splits.classes == classes
    labels: dict[str, int] = {}
    for split in every:
        assert isinstance(split.images, FileImages)
        labels |= dict(zip(map(str, split.images.paths), split.labels.tolist(), strict=True))
    parts = [getattr(datasets, name)(tmp_path, **arguments) for arguments in SETS[name].values()]
    assert len(labels) == sum(map(len, parts)) == sum(sizes)
    for file, label in labels.items():
        shown = Path(file).parent.name if name != "OxfordIIITPet" else Path(file).name.split("_")[0]
        words = {"n01440764": classes[0], "n02102040": classes[1], "beagle": "Beagle"}
        assert classes[label] == words.get(shown, shown)
    assert sorted(labels.values()) == sorted(label for part in parts for _, label in part)


def test_images_are_upright(tmp_path: Path) -> None:
    pets(tmp_path)
    assert load_torchvision(f"OxfordIIITPet:{tmp_path}").test.images[0].size == (2, 4)


def test_the_default_root_is_data(unchecked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert len(load_torchvision("CIFAR10").test) == 10


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_is_not_there_is_neither_fetched_nor_made(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=f"torchvision's {name} is not in .*{tmp_path.name} or is not whole; "
    ) as caught:
        load_torchvision(f"{name}:{tmp_path}")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    if name != "StanfordCars":
        call = str(caught.value).split("torchvision.datasets.")[1]
        kind, arguments = call.split("(", 1)
        signature = inspect.signature(getattr(datasets, kind))
        given = eval(f"dict(root={arguments}")  # the sentence is to be pasted
        assert given["download"] is True
        signature.bind(**given)


def test_a_set_that_torchvision_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no torchvision set 'CIFAR11'; did you mean 'CIFAR1"):
        load_torchvision(f"CIFAR11:{tmp_path}")
