from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Never

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder

from attention_transfer.data import FileImages, Split, Splits
from attention_transfer.data.class_folders import is_flat, load_flat, load_folder
from attention_transfer.data.splits import make_splits
from attention_transfer.errors import UserError, UserErrors

Write = Callable[..., list[Path]]
Files = Callable[[Split], list[Path]]


def parts(splits: Splits) -> list[Split]:
    return [splits.train, splits.validation, splits.test]


def counts(split: Split) -> list[int]:
    return [int(count) for count in np.bincount(split.labels)]


def said(splits: Splits) -> str:
    return "\n".join(splits.notes)


def test_class_folders_are_cut_into_three_splits(write: Write, files: Files, tmp_path: Path) -> None:
    for name in ("rose", "daisy"):
        write(name, 25)
    splits = load_folder(tmp_path)
    assert splits.classes == ("daisy", "rose")
    assert [counts(split) for split in parts(splits)] == [[16, 16], [4, 4], [5, 5]]
    every = [path for split in parts(splits) for path in files(split)]
    assert len(set(every)) == len(every) == 50
    for split in parts(splits):
        assert [path.parent.name for path in files(split)] == [splits.classes[label] for label in split.labels]
    assert "test split is 20%" in said(splits)
    again = load_folder(tmp_path)
    assert [files(split) for split in parts(again)] == [files(split) for split in parts(splits)]


def test_the_files_and_classes_are_those_of_torchvision(write: Write, files: Files, tmp_path: Path) -> None:
    write("b/deep", 4, suffix="JPG")
    write("b", 3, suffix="webp")
    write("a", 3)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    theirs = ImageFolder(str(tmp_path))
    splits = load_folder(tmp_path)
    assert list(splits.classes) == theirs.classes
    ours = {str(path): label for s in parts(splits) for path, label in zip(files(s), s.labels.tolist(), strict=True)}
    assert ours == dict(theirs.samples)
    assert "Not used in the class folders: 1 .txt." in said(splits)
    assert "Folders inside class folders belong to the class above them: 'b/deep'" in said(splits)


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Train", "Valid", "TEST"), ("training", "dev", "testing")]
)
def test_three_given_splits_are_used_as_they_are(
    names: tuple[str, ...], write: Write, files: Files, tmp_path: Path
) -> None:
    written = {name: [*write(f"{name}/a", 3), *write(f"{name}/b", 2)] for name in names}
    splits = load_folder(tmp_path)
    for name, split in zip(names, parts(splits), strict=True):
        assert files(split) == written[name]
        assert split.labels.tolist() == [0, 0, 0, 1, 1]
    assert "used as they are given" in said(splits)


def test_without_validation_it_is_cut_from_training(write: Write, files: Files, tmp_path: Path) -> None:
    train = [*write("train/a", 10), *write("train/b", 10)]
    test = [*write("test/a", 2), *write("test/b", 2)]
    splits = load_folder(tmp_path)
    assert files(splits.test) == test
    assert counts(splits.train) == [8, 8]
    assert sorted([*files(splits.train), *files(splits.validation)]) == train


def test_without_test_the_given_validation_is_kept_for_the_report(write: Write, files: Files, tmp_path: Path) -> None:
    train = [*write("train/a", 10), *write("train/b", 10)]
    given_ = [*write("val/a", 2), *write("val/b", 2)]
    splits = load_folder(tmp_path)
    assert files(splits.test) == given_
    assert sorted([*files(splits.train), *files(splits.validation)]) == train
    assert counts(splits.validation) == [2, 2]
    assert "validation split is taken as the test split" in said(splits)


def test_a_train_folder_alone_is_cut_into_all_three(write: Write, tmp_path: Path) -> None:
    write("train/a", 25)
    write("train/b", 25)
    splits = load_folder(tmp_path)
    assert splits.classes == ("a", "b")
    assert [counts(split) for split in parts(splits)] == [[16, 16], [4, 4], [5, 5]]


def test_a_class_may_be_called_train(write: Write, tmp_path: Path) -> None:
    for name in ("bus", "train", "tram"):
        write(name, 5)
    assert load_folder(tmp_path).classes == ("bus", "train", "tram")


def test_a_class_of_one_image_is_for_training_and_that_is_said(write: Write, tmp_path: Path) -> None:
    write("common", 20)
    write("single", 1)
    splits = load_folder(tmp_path)
    assert counts(splits.train) == [13, 1]
    assert [counts(split) for split in (splits.validation, splits.test)] == [[3], [4]]
    assert "The validation split has no image of 'single'" in said(splits)
    assert "The test split has no image of 'single'" in said(splits)
    assert "13 training images of 'common', 1 of 'single'" in said(splits)


def test_equal_classes_are_no_imbalance(write: Write, tmp_path: Path) -> None:
    write("a", 20)
    write("b", 10)
    assert "unequal" not in said(load_folder(tmp_path))


def test_nothing_to_cut_off_is_refused(write: Write, tmp_path: Path) -> None:
    for name in "abc":
        write(name, 1)
    with pytest.raises(UserError, match="no class with two training images, so no test split"):
        load_folder(tmp_path)


SIZES = st.lists(st.integers(1, 30), min_size=2, max_size=6).filter(lambda sizes: max(sizes) > 2)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=SIZES, test=st.booleans(), validation=st.booleans())
def test_splits_share_nothing_and_every_class_is_trained(
    sizes: list[int], test: bool, validation: bool, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attention_transfer.data.splits.damage", lambda path: None)  # there are no files
    given_ = ["train", *["validation"] * validation, *["test"] * test]
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    paths = {part: [f"{part}/{number}" for number in range(len(labels))] for part in given_}
    names = tuple(f"class {label}" for label in range(len(sizes)))
    splits = make_splits("x", names, {part: Split(FileImages(paths[part]), np.array(labels)) for part in given_})
    found = [str(path) for split in parts(splits) for path in files(split)]
    assert sorted(found) == sorted(path for part in given_ for path in paths[part])
    for split in parts(splits):
        assert split.labels.tolist() == [labels[int(path.name)] for path in files(split)]
    assert set(splits.train.labels.tolist()) == set(range(len(sizes)))
    assert all(path.parts[0] == "train" for path in files(splits.train))
    assert all(path.parts[0] == ("validation" if validation and test else "train") for path in files(splits.validation))
    expected = "test" if test else "validation" if validation else "train"
    assert {path.parts[0] for path in files(splits.test)} == {expected}
    if not test and not validation:
        for size, count in zip(sizes, np.bincount(splits.test.labels, minlength=len(sizes)), strict=True):
            assert abs(count - 0.2 * size) <= 0.8 and count < size


def test_damaged_files_are_left_out_with_their_reasons(write: Write, files: Files, tmp_path: Path) -> None:
    a, b = write("a", 10), write("b", 10)
    a[3].write_bytes(a[3].read_bytes()[:-60])
    b[0].write_bytes(b"")
    splits = load_folder(tmp_path)
    assert set(splits.skipped) == {str(a[3]), str(b[0])}
    assert splits.skipped[str(b[0])] == "is empty"
    assert not {a[3], b[0]} & {path for split in parts(splits) for path in files(split)}
    assert sum(map(len, parts(splits))) == 18
    assert "Damaged files are left out: 2 (1 is damaged and can't be read; 1 is empty), such as" in said(splits)
    with pytest.raises(UserErrors) as caught:
        load_folder(tmp_path, strict=True)
    assert [str(path) in str(caught.value) for path in (a[3], b[0])] == [True, True]
    assert len(caught.value.messages) == 2


def test_files_are_opened_once_and_again_when_they_changed(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [*write("a", 5), *write("b", 5)]
    opened: list[str] = []
    monkeypatch.setattr("attention_transfer.data.splits.damage", opened.append)
    for _ in range(2):
        load_folder(tmp_path)
    assert sorted(opened) == list(map(str, paths))
    paths[7].write_bytes(b"another length")
    load_folder(tmp_path)
    assert sorted(opened) == sorted(map(str, [*paths, paths[7]]))


def test_a_class_whose_images_are_all_damaged_is_refused(write: Write, tmp_path: Path) -> None:
    write("a", 5)
    for path in write("b", 3):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="class 'b' needs an image to train with, but all 3 are damaged"):
        load_folder(tmp_path)


def test_a_split_whose_images_are_all_damaged_is_refused(write: Write, tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/a", "test/b"):
        for path in write(name, 5):
            path.write_bytes(path.read_bytes() if name.startswith("train") else b"")
    with pytest.raises(UserError, match=r"no image of the test split can be read; the first: .*test/a/000\.png"):
        load_folder(tmp_path)


def test_hidden_files_and_folders_are_not_looked_at(write: Write, files: Files, tmp_path: Path) -> None:
    for name in ("a", "b", ".ipynb_checkpoints", "__MACOSX/a"):
        write(name, 5)
    (tmp_path / "a" / "._000.png").write_bytes(b"what macOS leaves behind")
    splits = load_folder(tmp_path)
    assert splits.classes == ("a", "b")
    assert sum(map(len, parts(splits))) == 10
    assert "1 hidden" in said(splits)
    assert not splits.skipped


def test_an_empty_folder_and_one_without_class_folders_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty; fill it"):
        load_folder(tmp_path)
    (tmp_path / "read.me").touch()
    with pytest.raises(UserError, match="no class folders; make one"):
        load_folder(tmp_path)
    write("", 3)
    with pytest.raises(UserError, match="holds images but no class folders"):
        load_folder(tmp_path)


def test_split_folders_without_class_folders_are_not_taken_for_classes(write: Write, tmp_path: Path) -> None:
    write("train", 3)
    write("test", 3)
    with pytest.raises(UserError, match=r"train holds images but no class folders"):
        load_folder(tmp_path)


def test_empty_class_folders_are_refused_by_name(write: Write, tmp_path: Path) -> None:
    write("a", 3)
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "c" / "film.mp4").touch()
    with pytest.raises(UserErrors, match=r"(?s)b holds no images.*c holds no images"):
        load_folder(tmp_path)


def test_a_single_class_is_refused_and_a_wrapping_folder_is_guessed(write: Write, tmp_path: Path) -> None:
    write("only", 3)
    with pytest.raises(UserError, match="a single class, 'only', so nothing"):
        load_folder(tmp_path)
    write("only/a", 3)
    with pytest.raises(UserError, match=f"did you mean {tmp_path / 'only'}"):
        load_folder(tmp_path)


def test_classes_that_only_test_has_are_refused_and_those_it_lacks_noted(write: Write, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write(f"train/{name}", 5)
    write("test/cat", 2)
    assert "The test split has no image of 'dog'" in said(load_folder(tmp_path))
    write("test/dogs", 2)
    with pytest.raises(UserError, match=r"test has classes that train lacks: 'dogs' \(did you mean 'dog'\?\)"):
        load_folder(tmp_path)


def test_splits_without_training_or_twice_are_refused(write: Write, tmp_path: Path) -> None:
    for name in ("test/a", "test/b", "val/a", "val/b"):
        write(name, 2)
    with pytest.raises(UserError, match="no train folder"):
        load_folder(tmp_path)
    for name in ("train/a", "train/b", "valid/a", "valid/b"):
        write(name, 2)
    with pytest.raises(UserError, match="two validation splits, val and valid"):
        load_folder(tmp_path)


def test_folders_beside_the_splits_are_said_not_to_be_used(write: Write, tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "unlabelled"):
        write(name, 5)
    splits = load_folder(tmp_path)
    assert "Folders beside the splits are not used: 'unlabelled'" in said(splits)
    assert sum(map(len, parts(splits))) == 10


def test_images_beside_the_class_folders_are_said_not_to_be_used(write: Write, tmp_path: Path) -> None:
    for name in ("train/a", "train/b"):
        write(name, 5)
    write("train", 1)
    write("", 7)
    splits = load_folder(tmp_path)
    assert "Images beside the class folders are not used: '000.png'" in said(splits)
    assert "and 3 more" in said(splits)
    assert sum(map(len, parts(splits))) == 10


def test_a_link_to_nowhere_is_left_out(write: Write, tmp_path: Path) -> None:
    write("a", 5)
    write("b", 5)
    (tmp_path / "a" / "lost.png").symlink_to(tmp_path / "nothing.png")
    splits = load_folder(tmp_path)
    assert "Not used in the class folders: 1 broken link." in said(splits)
    assert sum(map(len, parts(splits))) == 10


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> Never:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(UserError, match="can't be read: no permission; change its permissions"):
        load_folder(tmp_path)


def test_class_names_are_one_whatever_their_unicode_form(write: Write, files: Files, tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    train = [*write(f"train/{composed}", 3), *write("train/tea", 3)]
    test = [*write(f"test/{decomposed}", 2), *write("test/tea", 2)]
    splits = load_folder(tmp_path)
    assert splits.classes == (composed, "tea")
    assert files(splits.test) == test and splits.test.labels.tolist() == [0, 0, 1, 1]
    more = write(f"train/{decomposed}", 3)
    if len({*train, *more}) > 6:  # some file systems take both names for one
        splits = load_folder(tmp_path)
        assert len(splits.train) + len(splits.validation) == 9
        assert "names differ in their Unicode form only are one class: 'café'" in said(splits)


def test_class_names_that_are_no_utf8_can_be_written(write: Write, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    try:
        write(name, 5)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    write("tea", 5)
    splits = load_folder(tmp_path)
    assert splits.classes == (r"caf\xe9", "tea")
    assert "Class folders whose names are not UTF-8 are called" in said(splits)
    said(splits).encode()


def test_pipes_links_and_folders_of_systems_add_nothing_and_are_counted(write: Write, tmp_path: Path) -> None:
    for name in ("a", "b", "@eaDir", "a/@eaDir", "lost+found"):
        write(name, 5)
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    splits = load_folder(tmp_path)
    assert splits.classes == ("a", "b")
    assert sum(map(len, parts(splits))) == 10
    assert "2 link to a folder that is searched anyway, 1 named pipe, 1 of the system" in said(splits)
    assert "Hidden folders and those of systems are not used: '@eaDir', 'lost+found'" in said(splits)


def test_images_without_classes_are_found_by_the_same_rule(write: Write, files: Files, tmp_path: Path) -> None:
    paths = write("", 5)
    for name in (".hidden.png", "._000.png"):
        (tmp_path / name).write_bytes(paths[0].read_bytes())
    os.mkfifo(tmp_path / "pipe.png")
    assert is_flat(tmp_path)
    splits = load_flat(tmp_path)
    assert sorted(path for split in parts(splits) for path in files(split)) == paths
    assert "Not used: 2 hidden, 1 named pipe." in said(splits)
