"""Small copies of published data sets, file by file as their archives unpack."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")
AIRCRAFT = ("707-320", "Boeing 717", "F/A-18")
DOGS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel")
PETS = ("Abyssinian", "american_bulldog", "Birman")
WNIDS = ("n01440764", "n02012849", "n03126707")
MASK = np.array([[0, 0, 255, 255], [0, 51, 153, 255]], dtype=np.uint8)

Row = dict[str, Any]


@pytest.fixture
def miniatures() -> ModuleType:
    """This module, for tests can't import each other."""
    return sys.modules[__name__]


def image(path: Path, *, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 2), (shade, 0, 0)).save(path)
    return path


def text(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def structs(rows: Sequence[Row]) -> Any:
    """A MATLAB struct array of size 1 x n."""
    array = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
    for place, row in enumerate(rows):
        array[0, place] = tuple(row.values())
    return array


def cells(values: Sequence[str]) -> Any:
    """A MATLAB cell array of size n x 1."""
    array = np.empty((len(values), 1), dtype=object)
    array[:, 0] = values
    return array


def cub(folder: Path, *, shots: int = 5) -> Path:
    """Of each bird, `shots` training images and one test image, which comes first; listed from the last class on."""
    home = folder / "CUB_200_2011"
    names = [f"{bird}/{bird[4:]}_{n:04d}.jpg" for bird in reversed(BIRDS) for n in range(shots + 1)]
    for n, name in enumerate(names):
        image(home / "images" / name, shade=n)
        mask = (folder / "segmentations" / name).with_suffix(".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(MASK).save(mask)
    ids = range(1, len(names) + 1)
    text(home / "images.txt", [f"{n} {name}" for n, name in zip(ids, names, strict=True)])
    text(home / "image_class_labels.txt", [f"{n} {int(name[:3])}" for n, name in zip(ids, names, strict=True)])
    tests = [name.endswith("_0000.jpg") for name in names]
    text(home / "train_test_split.txt", [f"{n} {0 if test else 1}" for n, test in zip(ids, tests, strict=True)])
    text(home / "classes.txt", [f"{n} {bird}" for n, bird in enumerate(BIRDS, 1)])
    text(home / "bounding_boxes.txt", [f"{n} {n}.0 2.0 3.5 4.0" for n in ids])
    return home


def cars(folder: Path, *, shots: int = 5) -> Path:
    home = folder / "stanford_cars"
    box = {"bbox_x1": 39, "bbox_y1": 116, "bbox_x2": 569, "bbox_y2": 375}
    parts = {"train": len(CARS) * shots, "test": len(CARS)}
    (home / "devkit").mkdir(parents=True)
    for part, number in parts.items():
        rows: list[Row] = [{**box, "class": 1 + n % len(CARS), "fname": f"{n + 1:05d}.jpg"} for n in range(number)]
        for n, row in enumerate(rows):
            image(home / f"cars_{part}" / row["fname"], shade=n)
        name = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}[part]
        savemat(home / name, {"annotations": structs(rows)})
        if part == "test":
            unlabelled = [{key: value for key, value in row.items() if key != "class"} for row in rows]
            savemat(home / "devkit" / "cars_test_annos.mat", {"annotations": structs(unlabelled)})
    savemat(home / "devkit" / "cars_meta.mat", {"class_names": cells(CARS).T})
    return home


def cars_together(folder: Path, *, shots: int = 5) -> Path:
    """The form with all images in one folder."""
    box = {"bbox_x1": 39, "bbox_y1": 116, "bbox_x2": 569, "bbox_y2": 375}
    rows: list[Row] = [
        {"relative_im_path": f"car_ims/{n + 1:06d}.jpg", **box, "class": 1 + n % len(CARS), "test": int(n < len(CARS))}
        for n in range(len(CARS) * (shots + 1))
    ]
    for row in rows:
        image(folder / row["relative_im_path"])
    savemat(folder / "cars_annos.mat", {"annotations": structs(rows), "class_names": cells(CARS).T})
    return folder


def aircraft(folder: Path) -> Path:
    data = folder / "fgvc-aircraft-2013b" / "data"
    text(data / "variants.txt", AIRCRAFT)
    lines = []
    for start, part in enumerate(("train", "val", "test")):
        names = [f"{start + 1}{n:06d}" for n in range(2 * len(AIRCRAFT))]
        listed = [f"{name} {AIRCRAFT[n % len(AIRCRAFT)]}" for n, name in enumerate(names)]
        text(data / f"images_variant_{part}.txt", listed)
        for n, name in enumerate(names):
            image(data / "images" / f"{name}.jpg", shade=n)
            lines.append(f"{name} 3 144 998 431")
    text(data / "images_box.txt", lines)
    return data


def dogs(folder: Path, *, shots: int = 5) -> Path:
    (folder / "lists").mkdir(parents=True)
    for part in ("train", "test"):
        files = [
            f"{dog}/{dog.split('-')[0]}_{part}{n}.jpg" for dog in DOGS for n in range(shots if part == "train" else 1)
        ]
        labels = [[1.0 + DOGS.index(file.split("/")[0])] for file in files]
        savemat(folder / "lists" / f"{part}_list.mat", {"file_list": cells(files), "labels": np.array(labels)})
        for file in files:
            image(folder / "Images" / file)
            objects = [(10, 20, 30, 60), (5, 30, 20, 70)]
            text(
                (folder / "Annotation" / file).with_suffix(""), ["<annotation>", *map(bndbox, objects), "</annotation>"]
            )
    return folder


def bndbox(corners: tuple[int, int, int, int]) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    return f"<object><bndbox>{''.join(f'<{tag}>{value}</{tag}>' for tag, value in tags)}</bndbox></object>"


def pets(folder: Path, *, shots: int = 5) -> Path:
    home = folder / "oxford-iiit-pet"
    for part, numbers in (("trainval", range(shots)), ("test", range(100, 102))):
        names = [(f"{pet}_{n}", label) for label, pet in enumerate(PETS, 1) for n in numbers]
        text(home / "annotations" / f"{part}.txt", [f"{name} {label} 1 1" for name, label in names])
        for name, _ in names:
            image(home / "images" / f"{name}.jpg")
            trimap = home / "annotations" / "trimaps" / f"{name}.png"
            trimap.parent.mkdir(exist_ok=True)
            Image.fromarray(np.array([[1, 2, 3, 1], [2, 2, 2, 1]], dtype=np.uint8)).save(trimap)
    return home


def inaturalist(folder: Path, year: int, *, shots: int = 5) -> Path:
    """Three categories, listed in another order than that of their numbers."""
    categories: list[Row] = [
        {"id": number, "name": f"Species {number}", "supercategory": "Aves"} for number in (7, 2, 4)
    ]
    for part, number in (("train", shots), ("val", 1)):
        images: list[Row] = [
            {"id": 100 * c["id"] + n, "file_name": f"train_val{year}/Aves/{c['id']}/{part}{n}.jpg"}
            for c in categories
            for n in range(number)
        ]
        for record in images:
            image(folder / record["file_name"])
        annotations = [{"id": n, "image_id": r["id"], "category_id": r["id"] // 100} for n, r in enumerate(images)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{part}{year}.json").write_text(json.dumps(content))
        boxes = [{"image_id": images[0]["id"], "bbox": box} for box in ([1, 2, 3, 4], [2, 1, 5, 1])]
        (folder / f"{part}_{year}_bboxes.json").write_text(json.dumps({**content, "annotations": boxes}))
    return folder


def imagenet(folder: Path, *, shots: int = 5) -> Path:
    """Training and validation images in folders of their classes."""
    for wnid in WNIDS:
        for n in range(shots):
            image(folder / "train" / wnid / f"{wnid}_{n}.JPEG")
    for wnid, name in validation():
        image(folder / "val" / wnid / name)
    return folder


def validation() -> list[tuple[str, str]]:
    """What the validation images show, and their names; not in the order of the classes."""
    wnids = (WNIDS[2], WNIDS[0], WNIDS[1], WNIDS[0])
    return [(wnid, f"ILSVRC2012_val_{n:08d}.JPEG") for n, wnid in enumerate(wnids, 1)]


def flatten(folder: Path) -> None:
    """The validation images as published: all in one folder."""
    for wnid, name in validation():
        (folder / "val" / wnid / name).rename(folder / "val" / name)
    for wnid in WNIDS:
        (folder / "val" / wnid).rmdir()


def voc(folder: Path) -> Path:
    home = folder / "VOCdevkit" / "VOC2012"
    (home / "Annotations").mkdir(parents=True)
    (home / "SegmentationClass").mkdir()
    parts = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}
    parts["trainval"] = sorted(parts["train"] + parts["val"])
    for part, names in parts.items():
        text(home / "ImageSets" / "Segmentation" / f"{part}.txt", names)
    for name in parts["trainval"]:
        image(home / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(np.array([[0, 15, 255, 0], [0, 1, 20, 255]], dtype=np.uint8))
        mask.putpalette([value // 3 for value in range(768)])
        mask.save(home / "SegmentationClass" / f"{name}.png")
    return home
