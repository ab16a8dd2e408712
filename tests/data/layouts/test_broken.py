"""A file that is missing or damaged is named, in one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attention_transfer.data.layouts import find_layout, layouts
from attention_transfer.errors import UserError, UserErrors

LAYOUTS = layouts()

Change = Callable[[Path], Any]


def gone(name: str) -> Change:
    def change(home: Path) -> None:
        (home / name).unlink()

    return change


def written(name: str, content: str | bytes) -> Change:
    def change(home: Path) -> None:
        (home / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def truncated(name: str) -> Change:
    def change(home: Path) -> None:
        (home / name).write_bytes((home / name).read_bytes()[:150])

    return change


def replaced(name: str, old: str, new: str) -> Change:
    def change(home: Path) -> None:
        content = (home / name).read_text()
        assert old in content
        (home / name).write_text(content.replace(old, new))

    return change


def unlabelled(home: Path) -> None:
    (home / "cars_test_annos_withlabels.mat").unlink()


BROKEN: list[tuple[str, Change, str]] = [
    ("cub", gone("classes.txt"), r"classes.txt is missing; unpack its archive again"),
    ("cub", gone("train_test_split.txt"), r"train_test_split.txt is missing"),
    ("cub", written("classes.txt", ""), r"classes.txt is empty"),
    ("cub", written("classes.txt", b"1 \xff\xfe"), r"classes.txt is damaged"),
    ("cub", replaced("classes.txt", "2 002", "9 002"), r"classes.txt is damaged: its classes are not numbered from 1"),
    ("cub", written("images.txt", "1\n"), r"images.txt is damaged: '1' is not a line of 2 columns"),
    ("cub", written("train_test_split.txt", "1 0\n"), r"train_test_split.txt is damaged: it has no line for '2'"),
    ("cub", replaced("train_test_split.txt", "1 0", "1 x"), r"train_test_split.txt is damaged: 'x' is neither 0 nor 1"),
    ("cub", replaced("image_class_labels.txt", "1 3", "1 4"), r"labels.txt is damaged: class 4 is not one of the 3"),
    ("cub", replaced("image_class_labels.txt", "1 3", "1 x"), r"labels.txt is damaged: 'x' is not a class number"),
    ("cars", gone("devkit/cars_meta.mat"), r"cars_meta.mat is missing"),
    ("cars", written("devkit/cars_meta.mat", b""), r"cars_meta.mat is damaged"),
    ("cars", written("devkit/cars_meta.mat", b"<html>not found</html>" * 20), r"cars_meta.mat is damaged"),
    ("cars", truncated("devkit/cars_train_annos.mat"), r"cars_train_annos.mat is damaged"),
    ("cars", unlabelled, r"cars_test_annos.mat has no labels; put cars_test_annos_withlabels.mat, which has, into"),
    ("aircraft", gone("variants.txt"), r"variants.txt is missing"),
    ("aircraft", gone("images_variant_val.txt"), r"images_variant_val.txt is missing"),
    ("aircraft", replaced("variants.txt", "F/A-18", "F-16"), r"train.txt is damaged: 'F/A-18' is not a variant"),
    ("dogs", gone("lists/test_list.mat"), r"test_list.mat is missing"),
    ("dogs", truncated("lists/train_list.mat"), r"train_list.mat is damaged"),
    ("pets", gone("annotations/test.txt"), r"test.txt is missing"),
    ("pets", replaced("annotations/test.txt", "Abyssinian_100 1", "Abyssinian_100 x"), r"'x' is not a class number"),
    ("pets", replaced("annotations/test.txt", "Abyssinian_100 1", "Abyssinian_100 9"), r"damaged: classes are missing"),
    ("inat2018", gone("val2018.json"), r"val2018.json is missing"),
    ("inat2018", gone("train2018.json"), r"train2018.json is missing"),
    ("inat2018", written("train2018.json", '{"images": ['), r"train2018.json is damaged"),
    ("inat2018", written("val2018.json", '{"images": []}'), r"has no 'annotations' and no 'categories'"),
    ("inat2018", replaced("val2018.json", '"file_name"', '"file"'), r"'images' is not a list of objects with id, file"),
    ("inat2018", replaced("val2018.json", '"category_id": 2', '"category_id": 3'), r"no image 200 or no category 3"),
]


@pytest.mark.parametrize(("name", "change", "sentence"), BROKEN)
def test_the_file_is_named(name: str, change: Change, sentence: str, miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.inaturalist(tmp_path, 2018) if name == "inat2018" else getattr(miniatures, name)(tmp_path)
    LAYOUTS[name].load(home)
    change(home)
    found = find_layout(home)
    assert found is LAYOUTS[name], "it is recognised all the same, so that the file can be named"
    with pytest.raises(UserError, match=sentence) as caught:
        found.load(home)
    assert "\n" not in str(caught.value)
    assert "again" in str(caught.value) or "put" in str(caught.value), "it says what to do"


def test_all_missing_files_are_named_at_once(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.aircraft(tmp_path)
    (home / "images_variant_val.txt").unlink()
    (home / "images_variant_test.txt").unlink()
    with pytest.raises(UserErrors) as caught:
        LAYOUTS["aircraft"].load(home)
    assert [re.findall(r"\w+\.txt", message) for message in caught.value.messages] == [
        ["images_variant_val.txt"],
        ["images_variant_test.txt"],
    ]


def test_missing_images_are_counted_and_the_first_five_named(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.pets(tmp_path)
    for n in range(5):
        (home / "images" / f"Birman_{n}.jpg").unlink()
    (home / "images" / "Abyssinian_0.jpg").unlink()
    with pytest.raises(UserError, match=r"6 of 15 files that .*trainval.txt lists are missing") as caught:
        LAYOUTS["pets"].load(home)
    first = ["Abyssinian_0.jpg", *(f"Birman_{n}.jpg" for n in range(4))]
    assert re.findall(r"\w+_\d+\.jpg", str(caught.value)) == first


class TestImageNet:
    def refused(self, home: Path, sentence: str) -> None:
        with pytest.raises(UserError, match=sentence):
            LAYOUTS["imagenet"].load(home)

    def test_empty_class(self, miniatures: Any, tmp_path: Path) -> None:
        home = miniatures.imagenet(tmp_path)
        for file in (home / "train" / "n02012849").iterdir():
            file.unlink()
        self.refused(home, r"1 folders in .*train have no image \(the first: n02012849\)")

    def test_unknown_class_in_validation(self, miniatures: Any, tmp_path: Path) -> None:
        home = miniatures.imagenet(tmp_path)
        miniatures.image(home / "val" / "n09999999" / "1.JPEG")
        self.refused(home, "n09999999 is a class that train/ does not have")

    def test_flat_validation_without_answers(self, miniatures: Any, tmp_path: Path) -> None:
        home = miniatures.imagenet(tmp_path)
        miniatures.flatten(home)
        self.refused(home, r"no LOC_val_solution.csv, no .* and no .*ILSVRC2012_validation_ground_truth.txt; put one")

    @pytest.mark.parametrize(
        "content", ["", "ImageId,PredictionString\n", "ImageId,PredictionString\nx,tench 1 2 3 4\n"]
    )
    def test_damaged_answers(self, content: str, miniatures: Any, tmp_path: Path) -> None:
        home = miniatures.imagenet(tmp_path)
        miniatures.flatten(home)
        (home / "LOC_val_solution.csv").write_text(content)
        self.refused(home, "LOC_val_solution.csv is (damaged|empty)")

    def test_answers_of_a_class_that_is_not_there(self, miniatures: Any, tmp_path: Path) -> None:
        home = miniatures.imagenet(tmp_path)
        miniatures.flatten(home)
        (home / "LOC_val_solution.csv").write_text("a,b\nILSVRC2012_val_00000001,n09999999 1 2 3 4\n")
        self.refused(home, "has class n09999999, which .*train does not have")

    def test_ground_truth_without_its_class_numbers(self, miniatures: Any, tmp_path: Path) -> None:
        home = miniatures.imagenet(tmp_path)
        miniatures.flatten(home)
        (home / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n")
        self.refused(home, "meta.mat is missing")
        rows = [{"ILSVRC2012_ID": n, "WNID": wnid} for n, wnid in enumerate(miniatures.WNIDS, 1)]
        miniatures.savemat(home / "meta.mat", {"synsets": miniatures.structs(rows)})
        self.refused(home, "ground_truth.txt is damaged: '490' is not the number of a class in meta.mat")

    def test_names_that_lack_a_class(self, miniatures: Any, tmp_path: Path) -> None:
        home = miniatures.imagenet(tmp_path)
        miniatures.text(home / "LOC_synset_mapping.txt", ["n01440764 tench", "n02012849 crane"])
        self.refused(home, "LOC_synset_mapping.txt is damaged: it has no line for n03126707")
