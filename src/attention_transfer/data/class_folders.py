"""A folder of images as torchvision's `ImageFolder` knows it: a folder for each class, or these inside the splits'."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from attention_transfer.data.finder import SUFFIXES, Finder, as_text, counts_in_words, is_picture, left_out, subfolders
from attention_transfer.data.images import FileImages, Split, Splits
from attention_transfer.data.splits import AS_GIVEN, SPLIT_NAMES, first_five, make_splits
from attention_transfer.errors import UserError, raise_all

Classes = Mapping[str, Sequence[Path]]
"""The folders of each class: several if their names differ only in their Unicode form."""


def load_folder(path: Path, *, strict: bool = False) -> Splits:
    """Load images by class folders.

    `PATH/<class>/…` or `PATH/train/<class>/…` with `val` and `test` beside it, in any case and by their other usual
    names. Missing splits are cut off the training images. `finder` says which files are pictures; names of classes are
    compared in Unicode's composed form.

    Args:
        path: the folder.
        strict: refuse damaged files instead of leaving them out.

    Raises:
        UserError: there are no classes or only one, a class has no images, or the splits don't agree on the classes.
    """
    folders = _folders(path)
    splits = _split_folders(path, folders)
    parts = splits or {"train": path}
    given = {part: _classes(folder) for part, folder in parts.items()}
    classes = tuple(sorted(given["train"]))
    raise_all(_problems(parts, given, classes))
    finder = Finder()
    paths, labels = _find(finder, given, classes)
    raise_all(_empty(given["train"], [name for n, name in enumerate(classes) if n not in labels["train"]], finder))
    notes = [
        *_notes(given, paths, finder),
        *_unused(path, [folder for folder in folders if splits and folder not in splits.values()], parts),
    ]
    made = {part: Split(FileImages(paths[part]), np.array(labels[part], dtype=np.int64)) for part in parts}
    if len(made) == 3:
        notes.insert(0, AS_GIVEN)
    return make_splits(path.resolve().name, classes, made, notes=notes, strict=strict)


def is_flat(path: Path) -> bool:
    """Whether a folder holds images and no folders, so that nothing tells their classes."""
    return path.is_dir() and not _folders(path) and bool(_loose_images(path))


def load_flat(path: Path, *, strict: bool = False) -> Splits:
    """Load the images of a folder without class folders, as a single class, for training without labels.

    Args:
        path: the folder.
        strict: refuse damaged files instead of leaving them out.

    Raises:
        UserError: there are too few images to cut splits off; or, with `strict`, some are damaged.
    """
    finder = Finder()
    (files,) = finder.find([path])
    notes = ["There are no class folders: the images have no labels."]
    notes += [f"Not used: {counts_in_words(finder.left_out)}."] if finder.left_out else []
    images = Split(FileImages(files), np.zeros(len(files), dtype=np.int64))
    return make_splits(path.resolve().name, ["image"], {"train": images}, notes=notes, strict=strict)


def load_class_folders(path: Path) -> tuple[Split, tuple[str, ...]]:
    """All images of a folder of class folders as one split, and the names of the classes, in the order of the labels.

    Classes may be without images, and there may be no class at all.
    """
    given = {"all": _classes(path)}
    names = tuple(sorted(given["all"]))
    paths, labels = _find(Finder(), given, names)
    return Split(FileImages(paths["all"]), np.array(labels["all"], dtype=np.int64)), names


def _find(
    finder: Finder, given: Mapping[str, Classes], classes: Sequence[str]
) -> tuple[dict[str, list[str]], dict[str, list[int]]]:
    """The pictures of each split, by class, and their labels."""
    every = [
        (part, label, folder)
        for part, found in given.items()
        for label, name in enumerate(classes)
        for folder in found.get(name, ())
    ]
    paths: dict[str, list[str]] = {part: [] for part in given}
    labels: dict[str, list[int]] = {part: [] for part in given}
    for (part, label, _), pictures in zip(every, finder.find([folder for *_, folder in every]), strict=True):
        paths[part] += pictures
        labels[part] += [label] * len(pictures)
    return paths, labels


def _notes(given: Mapping[str, Classes], paths: Mapping[str, Sequence[str]], finder: Finder) -> list[str]:
    """What a reader should know about what was found."""
    notes = []
    if finder.left_out:
        notes.append(f"Not used in the class folders: {counts_in_words(finder.left_out)}.")
    outer = {str(folder) for found in given.values() for folders in found.values() for folder in folders}
    inner = dict.fromkeys(os.path.dirname(file) for files in paths.values() for file in files)  # noqa: PTH120
    if nested := [_inside(folder, outer) for folder in inner if folder not in outer]:
        notes.append(f"Folders inside class folders belong to the class above them: {first_five(nested)}.")
    several = dict.fromkeys(name for found in given.values() for name, folders in found.items() if len(folders) > 1)
    if several:
        notes.append(f"Folders whose names differ in their Unicode form only are one class: {first_five([*several])}.")
    names = {folder.name for found in given.values() for folders in found.values() for folder in folders}
    if foreign := [as_text(name) for name in sorted(names) if not name.isprintable() and as_text(name).isprintable()]:
        notes.append(f"Class folders whose names are not UTF-8 are called: {first_five(foreign)}.")
    return notes


def _inside(folder: str, outer: set[str]) -> str:
    """A folder's path, beginning at the class folder that it is in."""
    top = next(parent for parent in Path(folder).parents if str(parent) in outer)
    return str(Path(folder).relative_to(top.parent))


def _unused(path: Path, beside: Sequence[Path], parts: Mapping[str, Path]) -> list[str]:
    """Notes on what lies beside the folders of splits and classes."""
    notes = []
    if beside:
        notes.append(f"Folders beside the splits are not used: {first_five([folder.name for folder in beside])}.")
    roots = dict.fromkeys([path, *parts.values()])
    if loose := [file.name for folder in roots for file in _loose_images(folder)]:
        notes.append(f"Images beside the class folders are not used: {first_five(loose)}.")
    if hidden := [e.name for folder in roots for e in sorted(folder.iterdir()) if left_out(e.name) and e.is_dir()]:
        notes.append(f"Hidden folders and those of systems are not used: {first_five(hidden)}.")
    return notes


def _folders(path: Path) -> list[Path]:
    try:
        return subfolders(path)
    except PermissionError as error:
        raise UserError(f"{path} can't be read: no permission; change its permissions") from error


def _classes(path: Path) -> Classes:
    found: dict[str, list[Path]] = {}
    for folder in _folders(path):
        found.setdefault(as_text(folder.name), []).append(folder)
    return found


def _split_folders(path: Path, folders: Sequence[Path]) -> dict[str, Path]:
    """The folders of the splits; none if the folders are classes.

    A class may be called "train": folders are splits if all have such names, or if one that has holds folders.
    """
    called = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
    if not called or (len(called) < len(folders) and not any(_folders(folder) for folder in called)):
        return {}
    parts: dict[str, Path] = {}
    for folder in called:
        part = SPLIT_NAMES[folder.name.lower()]
        if part in parts:
            raise UserError(f"{path} has two {part} splits, {parts[part].name} and {folder.name}; remove one")
        parts[part] = folder
    if "train" not in parts:
        names = first_five([folder.name for folder in parts.values()])
        raise UserError(f"{path} has {names} but no train folder; add it, or put class folders at the top")
    return parts


def _problems(parts: Mapping[str, Path], given: Mapping[str, Classes], classes: tuple[str, ...]) -> list[str]:
    train = parts["train"]
    if not classes:
        return [_nothing(train)]
    if len(classes) == 1:
        inner = [folder for folders in given["train"].values() for folder in folders if _folders(folder)]
        hint = f"; did you mean {inner[0]}?" if inner else ", so nothing can be learnt; add others"
        return [f"{train} holds a single class, {classes[0]!r}{hint}"]
    problems = []
    for part, folder in parts.items():
        extra = [name for name in given[part] if name not in classes]
        if extra:
            close = difflib.get_close_matches(extra[0], classes, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            problems.append(
                f"{folder} has classes that {train.name} lacks: {first_five(extra)}{hint}; rename or remove them"
            )
        elif not given[part]:
            problems.append(_nothing(folder))
    return problems


def _empty(train: Classes, empty: Sequence[str], finder: Finder) -> list[str]:
    suffixes = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES)
    others = f"; not used in all classes: {counts_in_words(finder.left_out)}" if finder.left_out else ""
    return [
        f"class folder {train[name][0]} holds no images ({suffixes}); fill it or remove it{others}" for name in empty
    ]


def _loose_images(folder: Path) -> list[Path]:
    return sorted(e for e in folder.iterdir() if not left_out(e.name) and is_picture(e.name) and e.is_file())


def _nothing(folder: Path) -> str:
    if _loose_images(folder):
        return (
            f"{folder} holds images but no class folders; put the images of each class into a folder of its own, "
            "or list them in a CSV file with the columns path and label"
        )
    if any(folder.iterdir()):
        return f"{folder} holds no class folders; make one for the images of each class"
    return f"{folder} is empty; fill it with a folder of images for each class"
