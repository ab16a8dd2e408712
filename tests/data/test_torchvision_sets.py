"""torchvision's sets: splits and labels as torchvision itself gives them, and sets that are not there."""

from __future__ import annotations

import bz2
import inspect
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from attention_transfer.data import FileImages
from attention_transfer.data.torchvision_sets import LAYOUTS, SETS, load_torchvision
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
    for module in ("cifar", "stl10", "svhn", "flowers102", "semeion"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_: True)


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


def in_folders(root: Path, suffix: str, *parts: str) -> None:
    """Class folders in each of these."""
    for part in parts:
        for name in ("negative", "positive"):
            for n in range(5):
                image(root / part / name / f"{n}.{suffix}")


def dtd(root: Path) -> None:
    for place, part in enumerate(("train", "val", "test")):
        names = [f"{name}/{name}_{place}{n}.jpg" for name in ("woven", "banded") for n in range(3)]
        for name in names:
            image(root / "dtd" / "dtd" / "images" / name)
        listed = root / "dtd" / "dtd" / "labels" / f"{part}1.txt"
        listed.parent.mkdir(exist_ok=True)
        listed.write_text("\n".join(names))


def flowers102(root: Path) -> None:
    for n in range(1, 10):
        image(root / "flowers-102" / "jpg" / f"image_{n:05d}.jpg")
    savemat(root / "flowers-102" / "imagelabels.mat", {"labels": [5, 1, 102, 1, 5, 102, 1, 1, 2]})
    ids = {"trnid": [9, 1, 2, 3], "valid": [4, 5], "tstid": [6, 7, 8]}
    savemat(root / "flowers-102" / "setid.mat", ids)


def gtsrb(root: Path) -> None:
    in_folders(root / "gtsrb" / "GTSRB", "ppm", "Training")
    for n in range(3):
        image(root / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / f"{n}.ppm")
    rows = [f"{n}.ppm;{label}" for n, label in enumerate((1, 0, 1))]
    (root / "gtsrb" / "GT-final_test.csv").write_text("\n".join(["Filename;ClassId", *rows]))


def semeion(root: Path) -> None:
    labels = np.repeat(np.arange(10), 3)
    np.savetxt(root / "semeion.data", np.hstack([np.zeros((30, 256)), np.eye(10)[labels]]))


def stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("airplane\nbird\n")
    for part, labels in (("train", [1, 2, 2, 1]), ("test", [2, 1])):
        np.zeros((len(labels), 3, 96, 96), np.uint8).tofile(folder / f"{part}_X.bin")
        np.array(labels, np.uint8).tofile(folder / f"{part}_y.bin")


def sun397(root: Path) -> None:
    (root / "SUN397").mkdir()
    (root / "SUN397" / "ClassName.txt").write_text("/a/abbey\n/a/arch/inside\n")
    for name in ("abbey", "arch/inside"):
        for n in np.random.default_rng(0).permutation(20):
            image(root / "SUN397" / "a" / name / f"sun_{n:02d}.jpg")


def svhn(root: Path) -> None:
    for part, labels in (("train", [10, 1, 1, 10]), ("test", [1, 10])):
        pixels = np.zeros((32, 32, 3, len(labels)), np.uint8)
        savemat(root / f"{part}_32x32.mat", {"X": pixels, "y": [[label] for label in labels]})


def usps(root: Path) -> None:
    for name, labels in (("usps.bz2", (1, 2, 2, 1)), ("usps.t.bz2", (2, 1))):
        pixels = " ".join(f"{n}:-1" for n in range(1, 257))
        with bz2.open(root / name, "wt") as file:
            file.writelines(f"{label} {pixels}\n" for label in labels)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("Country211", lambda root: in_folders(root / "country211", "jpg", "train", "valid", "test")),
        ("DTD", dtd),
        ("Flowers102", flowers102),
        ("GTSRB", gtsrb),
        ("RenderedSST2", lambda root: in_folders(root / "rendered-sst2", "png", "train", "valid", "test")),
        ("SEMEION", semeion),
        ("STL10", stl10),
        ("SUN397", sun397),
        ("SVHN", svhn),
        ("USPS", usps),
    ],
)
def test_images_and_labels_are_torchvisions(name: str, build: Any, unchecked: None, tmp_path: Path) -> None:
    """As many of each class as torchvision gives by going through its items."""
    build(tmp_path)
    splits = load_torchvision(f"{name}:{tmp_path}")
    kind, every = getattr(datasets, name), (splits.train, splits.validation, splits.test)
    parts = {part: kind(tmp_path, **arguments, download=False) for part, arguments in SETS[name].items()}
    theirs = {part: Counter(int(dataset[n][1]) for n in range(len(dataset))) for part, dataset in parts.items()}
    assert sum((Counter(split.labels.tolist()) for split in every), Counter()) == sum(theirs.values(), Counter())
    for part in set(parts) - {"train"}:
        assert Counter(getattr(splits, part).labels.tolist()) == theirs[part]
    assert all(split.images[0].size == parts["train"][0][0].size for split in every)
    assert len(splits.classes) > max(max(labels) for labels in theirs.values())


def test_the_order_is_not_the_file_systems(tmp_path: Path) -> None:
    sun397(tmp_path)
    images = load_torchvision(f"SUN397:{tmp_path}").train.images
    assert isinstance(images, FileImages)
    assert list(images.paths) == sorted(images.paths)


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
        shown = Path(file).parent.name
        words = {"n01440764": classes[0], "n02102040": classes[1]}
        assert classes[label] == words.get(shown, shown)
    assert sorted(labels.values()) == sorted(label for part in parts for _, label in part)


def test_images_are_upright(tmp_path: Path) -> None:
    pets(tmp_path)
    assert load_torchvision(f"OxfordIIITPet:{tmp_path}").test.images[0].size == (2, 4)


def test_the_default_root_is_data(unchecked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert len(load_torchvision("CIFAR10").test) == 10


@pytest.mark.parametrize("name", [*SETS, *LAYOUTS])
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
