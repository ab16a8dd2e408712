"""Images in tar files, in WebDataset's form: `key.jpg` beside `key.cls` or `key.json`.

timm's readers are not used: `ReaderImageInTar` takes labels from names of folders and files, and keeps open tar files
that can't be sent to another process; `ReaderWds` streams, so that there is no image by index, and needs webdataset.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.data.decoding import Damaged, decode
from attention_transfer.data.finder import as_text, counts_in_words, left_out, subfolders
from attention_transfer.data.images import Split, Splits
from attention_transfer.data.labels import label_of, label_problems
from attention_transfer.data.patterns import expand, is_pattern
from attention_transfer.data.shard_index import Index, Label, index_shard, member_at
from attention_transfer.data.splits import SPLIT_NAMES, make_splits
from attention_transfer.errors import UserError, raise_all
from attention_transfer.text_files import Unsound, read_text
from attention_transfer.ui import bars

CLASS_FILES = ("classes.txt", "classnames.txt")
"""Files beside the shards, or above their folders, that name the classes: a line each, in the order of the labels."""


@dataclass(frozen=True)
class ShardImages:
    """Images in tar files, read by their position.

    The tar file is opened for each image, which takes a few hundredths of the time of decoding it. So no open file is
    shared by processes or has to be pickled, and any number of shards will do.

    Attributes:
        shards: the tar files.
        places: int64 (n, 3): which shard, the first byte in it, and the number of bytes.
    """

    shards: tuple[Path, ...]
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Image.Image:
        which, start, size = self.places[index].tolist()
        with self.shards[which].open("rb") as file:
            file.seek(start)
            data = file.read(size)
        try:
            return decode(data)
        except Damaged as error:
            raise UserError(f"{member_at(self.shards[which], start)} in {self.shards[which]} {error}") from error

    def take(self, indices: NDArray[np.int64]) -> ShardImages:
        """The images at these indices."""
        return ShardImages(self.shards, self.places[indices])


def is_shards(path: Path) -> bool:
    """Whether a path means shards: a tar file, a pattern of tar files, or a folder that holds nothing else.

    The folder may hold a folder of shards for each split. Nothing is opened.
    """
    if is_pattern(path) or path.is_file():
        return path.suffix.lower() == ".tar"
    if not path.is_dir():
        return False
    folders = subfolders(path)
    if not folders:
        return bool(_tar_files(path))
    return all(folder.name.lower() in SPLIT_NAMES and _tar_files(folder) for folder in folders)


def load_shards(path: Path) -> Splits:
    """Index tar files; missing splits are cut off the training images.

    A member `key.cls` holds the number or the name of the class of `key.jpg` (or .png, .webp and so on);
    `key.json` may do so instead, under "label". Notes count the members that are left out. Folders (`train/`, `val/`,
    `test/`) or a part of the names (`birds-train-0000.tar`) tell the splits; other shards hold training images. If a
    `classes.txt` names the classes, numbers are their indices; otherwise classes are the numbers that occur, in order.

    Args:
        path: a folder, a .tar file, or a pattern as "birds-{train,val}-{0000..0012}.tar" or "*.tar".

    Raises:
        UserError: there are no shards, one is damaged or compressed, or images have no labels.
    """
    part_of = _parts(path)
    shards = tuple(part_of)
    with bars(visible=len(shards) >= 20) as progress:
        indexed = [index_shard(shard) for shard in progress.track(shards, description="indexing shards")]
    classes, index, notes = _classes(path, shards, [label for shard in indexed for label in shard.labels])
    notes += _notes(indexed)
    splits: dict[str, Split] = {}
    for part in set(part_of.values()):
        which = [n for n, shard in enumerate(shards) if part_of[shard] == part]
        places = np.array([(n, *place) for n in which for place in indexed[n].places], dtype=np.int64)
        labels = np.array([index[label] for n in which for label in indexed[n].labels], dtype=np.int64)
        splits[part] = Split(ShardImages(shards, places), labels)
    name = path.stem if path.is_file() else Path(os.path.commonpath([shard.parent for shard in shards])).resolve().name
    return make_splits(name, classes, splits, notes=notes)


def _parts(path: Path) -> dict[Path, str]:
    """The shards and the split of each."""
    if path.is_dir():
        files = sorted(file for folder in (path, *subfolders(path)) for file in _tar_files(folder))
    else:
        files = expand(path)
    if not files:
        raise UserError(f"{path} holds no .tar files; name the folder or the files")
    parts = {file: _part(file, in_folder=file.parent != path) for file in files}
    found = set(parts.values())
    unnamed = next((file for file, part in parts.items() if not part), None)
    if unnamed is not None and len(found) > 1:
        raise UserError(f"{unnamed} does not say which split it belongs to, but others do; put train in its name")
    if unnamed is not None:
        return dict.fromkeys(parts, "train")
    if "train" not in found:
        raise UserError(f"{path} has shards for {' and '.join(sorted(found))}, but none for train; add them")
    return parts


def _part(file: Path, *, in_folder: bool) -> str:
    """The split of a shard by its folder or its name; an empty string if neither tells."""
    folder = SPLIT_NAMES.get(file.parent.name.lower(), "") if in_folder else ""
    if folder:
        return folder
    named = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", file.stem.lower()) if word in SPLIT_NAMES}
    if len(named) > 1:
        raise UserError(
            f"{file} may belong to {' or '.join(sorted(named))}; put the shards into folders of these names"
        )
    return named.pop() if named else ""


def _tar_files(folder: Path) -> list[Path]:
    entries = [entry for entry in folder.iterdir() if not left_out(entry.name) and entry.suffix.lower() == ".tar"]
    return sorted(entry for entry in entries if entry.is_file())


def _notes(indexed: Sequence[Index]) -> list[str]:
    notes = []
    others = sum((shard.left_out for shard in indexed), Counter[str]())
    if others:
        notes.append(f"Not used of the members of the shards: {counts_in_words(others)}.")
    dotted = [key for shard in indexed for key in shard.dotted]
    if dotted:
        notes.append(
            f"Keys of {len(dotted):,} images have dots (such as {as_text(dotted[0])}): their names are divided at the "
            "last dot, where WebDataset divides at the first, because each has a label of its own so."
        )
    return notes


def _classes(
    path: Path, shards: Sequence[Path], labels: Sequence[Label]
) -> tuple[list[str], dict[Label, int], list[str]]:
    """Class names, the index of each label, and notes."""
    found = set(labels)
    numbers = sorted(label for label in found if isinstance(label, int))
    names = sorted(label for label in found if isinstance(label, str))
    raise_all([f"{path}: {problem}" for problem in label_problems(map(str, found))])
    if numbers and names:
        raise UserError(f"{path} has labels of both kinds, numbers ({numbers[0]}) and names ({names[0]}); choose one")
    folders = {shard.parent for shard in shards}
    folders |= {folder.parent for folder in folders if folder.name.lower() in SPLIT_NAMES}
    listed = sorted(folder / name for folder in folders for name in CLASS_FILES if (folder / name).is_file())
    if listed:
        try:
            classes = [label_of(line) for line in read_text(listed[0]).splitlines() if line.strip()]
        except Unsound as error:
            raise UserError(f"{listed[0]} can't be read ({error}); write a class name a line") from error
        index: dict[Label, int] = {name if names else label: label for label, name in enumerate(classes)}
        unknown = sorted(str(label) for label in found if label not in index)
        if unknown:
            few = ", ".join(unknown[:5])
            raise UserError(f"{listed[0]} names {len(classes)} classes, and none for {few}; complete it")
        return classes, index, [f"Class names are from {listed[0].name}."]
    ordered: list[Label] = [*numbers, *names]
    notes = ["Classes are called by their numbers; a classes.txt beside the shards would name them."] if numbers else []
    return [str(label) for label in ordered], {label: n for n, label in enumerate(ordered)}, notes
