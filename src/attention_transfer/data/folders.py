"""A folder of images as torchvision's `ImageFolder` knows it: a folder for each class, or these inside the splits'."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from attention_transfer.data.cut import SPLIT_NAMES
from attention_transfer.data.images import Splits
from attention_transfer.data.listing import Listing, named, splits_of
from attention_transfer.errors import UserError, raise_all

_NOT_CLASSES = ("__MACOSX",)


def load_folder(path: Path, *, strict: bool = False) -> Splits:
    """Load images by class folders.

    `PATH/<class>/…` or `PATH/train/<class>/…` with `val` and `test` beside it, in any case and by their other usual
    names. Splits that are not given are cut from the training images. Files are taken by torchvision's suffixes;
    hidden files and folders are not looked at.

    Args:
        path: the folder.
        strict: refuse damaged files instead of leaving them out.

    Raises:
        UserError: there are no classes or only one, a class has no images, or the splits don't agree on the classes.
    """
    folders = _folders(path)
    splits = _split_folders(path, folders)
    parts = splits or {"train": path}
    classes = tuple(folder.name for folder in _folders(parts["train"]))
    raise_all(_problems(parts, classes))
    finder = _Finder(classes)
    found = {part: finder.find(folder) for part, folder in parts.items()}
    raise_all(_empty(parts["train"], classes, {label for _, label in found["train"]}))
    notes = finder.notes()
    if unused := [folder.name for folder in folders if splits and folder not in splits.values()]:
        notes.append(f"Folders beside the splits are not used: {named(unused)}.")
    if loose := [file.name for folder in {path, *parts.values()} for file in _loose_images(folder)]:
        notes.append(f"Images beside the class folders are not used: {named(loose)}.")
    listing = Listing(
        name=path.resolve().name,
        classes=classes,
        paths={part: [file for file, _ in pairs] for part, pairs in found.items()},
        labels={part: [label for _, label in pairs] for part, pairs in found.items()},
        notes=tuple(notes),
    )
    return splits_of(listing, strict=strict)


def is_flat(path: Path) -> bool:
    """Whether a folder holds images and no folders, so that nothing says their classes."""
    return path.is_dir() and not _folders(path) and any(not file.name.startswith(".") for file in _loose_images(path))


def load_flat(path: Path, *, strict: bool = False) -> Splits:
    """Load the images of a folder without class folders, as images of a single class: for what needs no labels.

    Args:
        path: the folder.
        strict: refuse damaged files instead of leaving them out.

    Raises:
        UserError: there are too few images to cut splits off; or, with `strict`, some are damaged.
    """
    files = [str(file) for file in _loose_images(path) if not file.name.startswith(".")]
    listing = Listing(
        name=path.resolve().name,
        classes=("image",),
        paths={"train": files},
        labels={"train": [0] * len(files)},
        notes=("There are no class folders: the images have no labels.",),
    )
    return splits_of(listing, strict=strict)


class _Finder:
    """Finds images, and remembers what else there was."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.labels = {name: label for label, name in enumerate(classes)}
        self.others: Counter[str] = Counter()
        self.nested: dict[str, None] = {}

    def find(self, folder: Path) -> list[tuple[str, int]]:
        present = {name: label for name, label in self.labels.items() if (folder / name).is_dir()}
        if not present:
            return []
        found: list[tuple[str, int]] = make_dataset(folder, present, is_valid_file=self._is_image, allow_empty=True)
        folders = dict.fromkeys(os.path.dirname(file) for file, _ in found)  # noqa: PTH120 – a million files
        inner = [Path(name).relative_to(folder) for name in folders]
        self.nested |= {str(name): None for name in inner if len(name.parts) > 1}
        return found

    def notes(self) -> list[str]:
        """What a reader should know of what was found."""
        notes = []
        if self.others:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.others.most_common(5))
            notes.append(f"Files in class folders that are no images are not used: {kinds}.")
        if self.nested:
            notes.append(f"Folders inside class folders belong to the class above them: {named([*self.nested])}.")
        return notes

    def _is_image(self, file: str) -> bool:
        path = Path(file)
        if path.name.startswith(".") or path.parent.name.startswith("."):
            self.others["hidden"] += 1
            return False
        if path.suffix.lower() not in IMG_EXTENSIONS:
            self.others[path.suffix.lower() or "without a suffix"] += 1
            return False
        return True


def _folders(path: Path) -> list[Path]:
    """Folders in it by name, but hidden ones and what archives leave behind."""
    try:
        entries = sorted(path.iterdir())
    except PermissionError as error:
        raise UserError(f"{path} may not be read; change its permissions") from error
    return [e for e in entries if e.is_dir() and not e.name.startswith(".") and e.name not in _NOT_CLASSES]


def _split_folders(path: Path, folders: Sequence[Path]) -> dict[str, Path]:
    """The folders of splits, or none where the folders are classes.

    A class may be called "train": folders are splits where all have such names, or one of these holds folders.
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
        names = named([folder.name for folder in parts.values()])
        raise UserError(f"{path} has {names} but no train folder; add it, or put class folders at the top")
    return parts


def _problems(parts: dict[str, Path], classes: tuple[str, ...]) -> list[str]:
    train = parts["train"]
    if not classes:
        return [_nothing(train)]
    if len(classes) == 1:
        inner = [folder.name for folder in _folders(train / classes[0])]
        hint = f"; did you mean {train / classes[0]}?" if inner else ", of which nothing can be learnt; add others"
        return [f"{train} holds a single class, {classes[0]!r}{hint}"]
    problems = []
    for folder in parts.values():
        extra = [f.name for f in _folders(folder) if f.name not in classes]
        if extra:
            close = difflib.get_close_matches(extra[0], classes, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            problems.append(
                f"{folder} has classes that {train.name} has not: {named(extra)}{hint}; rename or remove them"
            )
        elif not _folders(folder):
            problems.append(_nothing(folder))
    return problems


def _empty(train: Path, classes: Sequence[str], found: Set[int]) -> list[str]:
    suffixes = ", ".join(suffix.removeprefix(".") for suffix in IMG_EXTENSIONS)
    return [
        f"class folder {train / name} holds no images ({suffixes}); fill it or remove it"
        for label, name in enumerate(classes)
        if label not in found
    ]


def _loose_images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMG_EXTENSIONS and file.is_file())


def _nothing(folder: Path) -> str:
    if _loose_images(folder):
        return (
            f"{folder} holds images but no class folders; put the images of each class into a folder of its own, "
            "or list them in a CSV file with the columns path and label"
        )
    if any(folder.iterdir()):
        return f"{folder} holds no class folders; make one for the images of each class"
    return f"{folder} is empty; fill it with a folder of images for each class"
