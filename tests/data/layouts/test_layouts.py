"""What is read from each published layout: counts, classes, labels, membership of the splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from attention_transfer.data import FileImages, Split, load_data
from attention_transfer.data.layouts import find_layout, layouts
from attention_transfer.data.shards import is_shards
from attention_transfer.data.torchvision_sets import LAYOUTS as TORCHVISION
from attention_transfer.errors import UserError

LAYOUTS = layouts()

BUILT = {
    "cub": lambda m, folder: m.cub(folder),
    "cars": lambda m, folder: m.cars(folder),
    "aircraft": lambda m, folder: m.aircraft(folder),
    "dogs": lambda m, folder: m.dogs(folder),
    "pets": lambda m, folder: m.pets(folder),
    "inat2017": lambda m, folder: m.inaturalist(folder, 2017),
    "inat2018": lambda m, folder: m.inaturalist(folder, 2018),
    "inat2019": lambda m, folder: m.inaturalist(folder, 2019),
    "imagenet": lambda m, folder: m.imagenet(folder),
    "voc2012": lambda m, folder: m.voc(folder),
}


def files(split: Split) -> dict[str, int]:
    """Label of each file name."""
    assert isinstance(split.images, FileImages)
    assert split.labels.dtype == np.int64
    return {path.name: label for path, label in zip(split.images.paths, split.labels.tolist(), strict=True)}


def learnt_from(splits: Any) -> dict[str, int]:
    """Training and validation images together; they share none, and validation is 20 % of each class."""
    train, validation = files(splits.train), files(splits.validation)
    assert not train.keys() & validation.keys()
    assert np.bincount(splits.validation.labels).tolist() == [1] * len(splits.classes)
    assert np.bincount(splits.train.labels).tolist() == [4] * len(splits.classes)
    return train | validation


def test_every_layout_has_a_miniature_here() -> None:
    assert BUILT.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_recognised_as_itself_only(name: str, miniatures: Any, tmp_path: Path) -> None:
    home = BUILT[name](miniatures, tmp_path)
    assert [layout.name for layout in LAYOUTS.values() if layout.find(home)] == [name]
    found = find_layout(home)
    assert found is LAYOUTS[name]
    assert find_layout(tmp_path) is found, "the folder in which the archive was unpacked will do"
    (home / "images.tar").touch()
    assert not is_shards(home), "an archive that was left there"


def test_other_folders_are_not_recognised(miniatures: Any, tmp_path: Path) -> None:
    miniatures.image(tmp_path / "train" / "cat" / "1.jpg")
    miniatures.image(tmp_path / "val" / "cat" / "1.jpg")
    assert find_layout(tmp_path) is None
    assert find_layout(tmp_path / "nothing") is None


def test_nabirds_is_not_taken_for_cub(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.cub(tmp_path)
    (home / "hierarchy.txt").touch()
    assert find_layout(home) is None


def test_a_subset_of_imagenet_with_a_test_split_of_its_own_is_not_taken_for_it(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.imagenet(tmp_path)
    miniatures.image(home / "test" / "ILSVRC2012_test_00000001.JPEG")
    assert find_layout(home) is LAYOUTS["imagenet"], "as published, without classes"
    miniatures.image(home / "test" / miniatures.WNIDS[0] / "1.JPEG")
    assert find_layout(home) is None


def test_a_folder_with_two_data_sets_is_refused(miniatures: Any, tmp_path: Path) -> None:
    miniatures.cub(tmp_path)
    miniatures.pets(tmp_path)
    with pytest.raises(UserError, match=r"holds CUB-200-2011 and Oxford-IIIT Pets; name the folder of one of them"):
        find_layout(tmp_path)


def test_a_layout_refuses_the_folder_of_another(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.cub(tmp_path)
    for layout in LAYOUTS.values():
        if layout.name != "cub":
            with pytest.raises(UserError, match=f"{layout.title}"):
                layout.load(home)


def test_cub(miniatures: Any, tmp_path: Path) -> None:
    splits = LAYOUTS["cub"].load(miniatures.cub(tmp_path))
    birds = miniatures.BIRDS
    assert (splits.name, splits.classes) == ("cub", birds)
    assert files(splits.test) == {f"{bird[4:]}_0000.jpg": label for label, bird in enumerate(birds)}
    assert learnt_from(splits) == {f"{b[4:]}_{n:04d}.jpg": label for label, b in enumerate(birds) for n in range(1, 6)}
    assert splits.test.images[0].size == (4, 2)


@pytest.mark.parametrize("form", ["cars", "cars_together"])
def test_cars(form: str, miniatures: Any, tmp_path: Path) -> None:
    splits = LAYOUTS["cars"].load(getattr(miniatures, form)(tmp_path))
    assert splits.classes == miniatures.CARS
    assert list(files(splits.test).values()) == [0, 1]
    assert all(label == (int(Path(name).stem) - 1) % 2 for name, label in learnt_from(splits).items())


def test_cars_in_a_folder_twice(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.cars(tmp_path)
    for part in ("cars_train", "cars_test"):
        (home / part).rename(home / "once")
        (home / part).mkdir()
        (home / "once").rename(home / part / part)
    assert len(LAYOUTS["cars"].load(home).test) == 2


def test_aircraft_keeps_its_own_validation_split(miniatures: Any, tmp_path: Path) -> None:
    splits = LAYOUTS["aircraft"].load(miniatures.aircraft(tmp_path))
    assert splits.classes == miniatures.AIRCRAFT
    for start, split in zip("123", (splits.train, splits.validation, splits.test), strict=True):
        assert files(split) == {f"{start}{n:06d}.jpg": n % 3 for n in range(6)}
    assert any("banner of 20 pixels" in note for note in splits.notes)


@pytest.mark.parametrize("beside", [False, True])
def test_dogs(beside: bool, miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.dogs(tmp_path)
    if beside:  # as lists.tar unpacks
        for name in ("train_list.mat", "test_list.mat"):
            (home / "lists" / name).rename(home / name)
        (home / "lists").rmdir()
    splits = LAYOUTS["dogs"].load(home)
    assert splits.classes == ("Chihuahua", "Japanese_spaniel")
    assert files(splits.test) == {"n02085620_test0.jpg": 0, "n02085782_test0.jpg": 1}
    assert learnt_from(splits).keys() == {f"{dog[:9]}_train{n}.jpg" for dog in miniatures.DOGS for n in range(5)}


def test_pets(miniatures: Any, tmp_path: Path) -> None:
    splits = LAYOUTS["pets"].load(miniatures.pets(tmp_path))
    assert splits.classes == miniatures.PETS
    for numbers, found in (((100, 101), files(splits.test)), (range(5), learnt_from(splits))):
        assert found == {f"{pet}_{n}.jpg": label for label, pet in enumerate(splits.classes) for n in numbers}


@pytest.mark.parametrize("year", [2017, 2018, 2019])
def test_inaturalist_labels_are_in_the_order_of_the_numbers(year: int, miniatures: Any, tmp_path: Path) -> None:
    splits = LAYOUTS[f"inat{year}"].load(miniatures.inaturalist(tmp_path, year))
    assert splits.classes == ("Species 2", "Species 4", "Species 7")
    assert isinstance(splits.test.images, FileImages)
    folders = [path.parent.name for path in splits.test.images.paths]
    assert dict(zip(folders, splits.test.labels.tolist(), strict=True)) == {"2": 0, "4": 1, "7": 2}
    assert any("validation split is taken as the test split" in note for note in splits.notes)
    assert len(splits.train) == 12 and len(splits.validation) == 3


def test_inaturalist_names_that_were_published_later(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.inaturalist(tmp_path, 2018)
    (home / "categories.json").write_text('[{"id": 4, "name": "Apis mellifera"}, {"id": 900, "name": "Another"}]')
    assert LAYOUTS["inat2018"].load(home).classes == ("Species 2", "Apis mellifera", "Species 7")


def test_imagenet_in_folders_of_classes(miniatures: Any, tmp_path: Path) -> None:
    splits = LAYOUTS["imagenet"].load(miniatures.imagenet(tmp_path))
    assert splits.classes == miniatures.WNIDS
    expected = {name: miniatures.WNIDS.index(wnid) for wnid, name in miniatures.validation()}
    assert files(splits.test) == expected
    assert learnt_from(splits) == {f"{w}_{n}.JPEG": label for label, w in enumerate(splits.classes) for n in range(5)}
    assert "The folder has 3 of the 1,000 classes." in splits.notes


def test_imagenet_as_kaggle_gives_it(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.imagenet(tmp_path / "ILSVRC" / "Data" / "CLS-LOC")
    miniatures.flatten(home)
    words = ["n01440764 tench, Tinca tinca", "n02012849 crane", "n03126707 crane"]
    miniatures.text(tmp_path / "LOC_synset_mapping.txt", words)
    rows = [f"{Path(name).stem},{wnid} 85 1 499 272 {wnid} 1 2 3 4" for wnid, name in reversed(miniatures.validation())]
    miniatures.text(tmp_path / "LOC_val_solution.csv", ["ImageId,PredictionString", *rows])
    splits = LAYOUTS["imagenet"].load(tmp_path)
    assert splits.classes == ("tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)")
    assert files(splits.test) == {name: miniatures.WNIDS.index(wnid) for wnid, name in miniatures.validation()}


def test_imagenet_with_the_challenges_own_class_numbers(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.imagenet(tmp_path)
    miniatures.flatten(home)
    numbers = {wnid: number for number, wnid in zip((2, 3, 1), miniatures.WNIDS, strict=True)}
    devkit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    truth = [str(numbers[wnid]) for wnid, _ in miniatures.validation()]
    miniatures.text(devkit / "ILSVRC2012_validation_ground_truth.txt", truth)
    rows = [{"ILSVRC2012_ID": n, "WNID": w, "words": w, "gloss": "", "num_children": 0} for w, n in numbers.items()]
    miniatures.savemat(devkit / "meta.mat", {"synsets": miniatures.structs(rows)})
    splits = LAYOUTS["imagenet"].load(home)
    assert files(splits.test) == {name: miniatures.WNIDS.index(wnid) for wnid, name in miniatures.validation()}


def test_imagenet_with_the_list_of_wordnet_ids(miniatures: Any, tmp_path: Path) -> None:
    home = miniatures.imagenet(tmp_path)
    miniatures.flatten(home)
    wnids = [wnid for wnid, _ in miniatures.validation()]
    miniatures.text(home / "imagenet_2012_validation_synset_labels.txt", wnids)
    splits = LAYOUTS["imagenet"].load(home)
    assert files(splits.test) == {name: miniatures.WNIDS.index(wnid) for wnid, name in miniatures.validation()}


def test_voc_is_not_for_single_labels(miniatures: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="several classes each; it serves segmentation"):
        LAYOUTS["voc2012"].load(miniatures.voc(tmp_path))


@pytest.mark.parametrize("kind", TORCHVISION)
def test_the_folder_that_torchvision_unpacks_is_read_as_the_layout(kind: str, miniatures: Any, tmp_path: Path) -> None:
    """Files and labels of the training (for two of the sets with validation) and test images are torchvision's."""
    name = TORCHVISION[kind]
    BUILT[name](miniatures, tmp_path)
    splits = load_data(f"torchvision/{kind}:{tmp_path}")
    assert (splits.name, splits.classes) == (name, LAYOUTS[name].load(tmp_path).classes)
    train = files(splits.train) | (files(splits.validation) if name != "aircraft" else {})
    parts = {"OxfordIIITPet": ("trainval", "test")}.get(kind, ("train", "test"))
    for part, ours in zip(parts, (train, files(splits.test)), strict=True):
        dataset = getattr(datasets, kind)(tmp_path, part)
        assert sorted(ours.values()) == sorted(label for _, label in dataset)
        stems = {Path(file).stem for file in getattr(dataset, "_images", ()) or getattr(dataset, "_image_files", ())}
        assert not stems or stems == {Path(file).stem for file in ours}
