"""Boxes and masks of published data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import VOCSegmentation

from attention_transfer.data import FileImages
from attention_transfer.data.layouts import VOC_CLASSES, boxes, layouts, masks, read_mask, voc_segmentation
from attention_transfer.errors import UserError

LAYOUTS = layouts()


def every_image(name: str, path: Path) -> set[Path]:
    """The images of all splits."""
    splits = LAYOUTS[name].load(path)
    found: set[Path] = set()
    for split in (splits.train, splits.validation, splits.test):
        assert isinstance(split.images, FileImages)
        found |= set(split.images.paths)
    return found


def test_cub_boxes_are_as_published(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.cub(tmp_path)
    found = boxes(home)
    assert found.keys() == every_image("cub", home)
    first = home / "images" / "003.Sooty_Albatross" / "Sooty_Albatross_0000.jpg"
    assert found[first] == (1.0, 2.0, 3.5, 4.0)


@pytest.mark.parametrize("form", ["cars", "cars_together"])
def test_cars_boxes_count_from_zero_and_keep_the_last_pixel(form: str, miniatures: Any, tmp_path: Path) -> None:
    home = getattr(miniatures, form)(tmp_path)
    found = boxes(home)
    assert found.keys() == every_image("cars", home)
    assert set(found.values()) == {(38.0, 115.0, 531.0, 260.0)}


def test_aircraft_boxes_count_from_zero_and_keep_the_last_pixel(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.aircraft(tmp_path)
    found = boxes(home)
    assert found.keys() == every_image("aircraft", home)
    assert set(found.values()) == {(2.0, 143.0, 996.0, 288.0)}


def test_dogs_boxes_are_around_all_dogs(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.dogs(tmp_path)
    found = boxes(home)
    assert found.keys() == every_image("dogs", home)
    assert set(found.values()) == {(5.0, 20.0, 25.0, 50.0)}


def test_inaturalist_boxes_are_around_all_individuals(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.inaturalist(tmp_path, 2017)
    expected = {home / "train_val2017" / "Aves" / "7" / f"{part}0.jpg" for part in ("train", "val")}
    assert boxes(home) == dict.fromkeys(expected, (1.0, 1.0, 6.0, 5.0))


def test_imagenet_boxes_are_those_of_the_validation_images(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.imagenet(tmp_path / "ILSVRC" / "Data" / "CLS-LOC")
    for _, name in miniatures.validation():
        xml = tmp_path / "Annotations" / "CLS-LOC" / "val" / f"{Path(name).stem}.xml"
        miniatures.text(xml, ["<annotation>", miniatures.bndbox((1, 2, 5, 10)), "</annotation>"])
    expected = {home / "val" / wnid / name for wnid, name in miniatures.validation()}
    assert boxes(tmp_path) == dict.fromkeys(expected, (1.0, 2.0, 4.0, 8.0))


@pytest.mark.parametrize("beside", [True, False])
def test_cub_masks(beside: bool, miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.cub(tmp_path)
    if not beside:
        (tmp_path / "segmentations").rename(home / "segmentations")
    found = masks(home)
    assert found.keys() == every_image("cub", home)
    for image, mask in found.items():
        assert (image.parent.name, image.stem) == (mask.parent.name, mask.stem)
        np.testing.assert_array_equal(read_mask(LAYOUTS["cub"], mask), [[0, 0, 1, 1], [0, 0, 1, 1]])


def test_pets_masks(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.pets(tmp_path)
    found = masks(home)
    assert found.keys() == every_image("pets", home)
    mask = found[home / "images" / "Birman_101.jpg"]
    np.testing.assert_array_equal(read_mask(LAYOUTS["pets"], mask), [[1, 0, 0, 1], [0, 0, 0, 1]])


@pytest.mark.parametrize("split", ["train", "val", "trainval"])
def test_voc_segmentation_is_as_torchvision_reads_it(split: Any, miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.voc(tmp_path)
    reference = VOCSegmentation(tmp_path, year="2012", image_set=split)
    assert [(str(image), str(mask)) for image, mask in voc_segmentation(home, split)] == list(
        zip(reference.images, reference.masks, strict=True)
    )


def test_voc_masks_hold_the_numbers_of_classes(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.voc(tmp_path)
    found = masks(home)
    assert len(found) == 3
    mask = found[home / "JPEGImages" / "2007_000033.jpg"]
    assert VOC_CLASSES[np.asarray(Image.open(mask))[0, 1]] == "person"
    np.testing.assert_array_equal(read_mask(LAYOUTS["voc2012"], mask), [[0, 1, 0, 0], [0, 1, 1, 0]])


def test_a_data_set_without_is_told_which_have(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.pets(tmp_path)
    with pytest.raises(UserError, match=r"Oxford-IIIT Pets has no boxes; those that have: CUB-200-2011, FGVC"):
        boxes(home)
    with pytest.raises(UserError, match=r"Stanford Cars has no masks; those that have: CUB-200-2011, Oxford-IIIT Pets"):
        masks(miniatures.cars(tmp_path))
    with pytest.raises(UserError, match="FGVC-Aircraft has no masks"):
        read_mask(LAYOUTS["aircraft"], home)
    with pytest.raises(UserError, match="not a data set with boxes or masks"):
        boxes(tmp_path / "nothing")


def test_missing_and_damaged_files_are_named(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.cub(tmp_path / "cub")
    (home / "bounding_boxes.txt").write_text("1 1 2 3\n")
    with pytest.raises(UserError, match=r"bounding_boxes.txt is damaged: it has no line for '2' of images.txt"):
        boxes(home)
    (tmp_path / "cub" / "segmentations").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"segmentations is missing; unpack segmentations.tgz there"):
        masks(home)
    home = miniatures.dogs(tmp_path / "dogs")
    xml = home / "Annotation" / "n02085620-Chihuahua" / "n02085620_train3"
    xml.write_text("<annotation><object>")
    with pytest.raises(UserError, match="n02085620_train3 is damaged"):
        boxes(home)
    xml.write_text("<annotation/>")
    with pytest.raises(UserError, match="n02085620_train3 is damaged: it has no box"):
        boxes(home)
    home = miniatures.voc(tmp_path / "voc")
    (home / "SegmentationClass" / "2007_000033.png").unlink()
    with pytest.raises(UserError, match=r"1 of 1 files that .*val.txt lists are missing \(.*2007_000033.png\)"):
        voc_segmentation(home, "val")
    home = miniatures.imagenet(tmp_path / "imagenet")
    with pytest.raises(UserError, match="has no Annotations/CLS-LOC/val"):
        boxes(home)
