"""Images in tar files, in WebDataset's form: `key.jpg` beside `key.cls` or `key.json`.

timm's readers are not used: `ReaderImageInTar` takes labels from names of folders and files, and keeps open tar files
that can't be sent to another process; `ReaderWds` streams, so that there is no image by index, and needs webdataset.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from attention_transfer.data.cut import SPLIT_NAMES, complete
from attention_transfer.data.files import UNREADABLE, upright
from attention_transfer.data.images import Split, Splits
from attention_transfer.data.patterns import expand, is_pattern
from attention_transfer.data.threads import bar
from attention_transfer.errors import UserError, raise_all

CLASS_FILES = ("classes.txt", "classnames.txt")
"""Files beside the shards, or above their folders, that name the classes: a line each, in the order of the labels."""

Label = int | str


@dataclass(frozen=True)
class ShardImages:
    """Images in tar files, read by their place.

    A file is opened for each image, which takes a few hundredths of the time of decoding it: so nothing is open that
    processes could share by mistake or could not be sent, and no number of shards is too large.

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
        except UNREADABLE as error:
            name = _member_at(self.shards[which], start)
            raise UserError(f"{name} in {self.shards[which]} can't be read ({error}); make the shard again") from error

    def take(self, indices: NDArray[np.int64]) -> ShardImages:
        """The images at these indices."""
        return ShardImages(self.shards, self.places[indices])


def decode(data: bytes) -> Image.Image:
    """The image of a file's bytes, upright. Raises what Pillow raises (`files.UNREADABLE`)."""
    with Image.open(BytesIO(data)) as image:
        return upright(image)


def is_shards(path: Path) -> bool:
    """Whether a path is meant as shards: a tar file, a pattern of these, or a folder with nothing but these.

    The folder may have them in folders of the splits. Nothing is opened.
    """
    if is_pattern(path):
        return path.suffix == ".tar"
    if path.is_file():
        return path.suffix == ".tar"
    if not path.is_dir():
        return False
    folders = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if not folders:
        return any(path.glob("*.tar"))
    return all(folder.name.lower() in SPLIT_NAMES and any(folder.glob("*.tar")) for folder in folders)


def load_shards(path: Path) -> Splits:
    """Index tar files, and cut the splits that are not there.

    A member `key.cls` holds the number or the name of the class of `key.jpg` (or .png, .webp and so on);
    `key.json` may do so instead, under "label". Splits are told by folders (`train/`, `val/`, `test/`) or by a part
    of the names (`birds-train-0000.tar`); shards without either are training images. Numbers are labels where a
    `classes.txt` names the classes; else classes are in the order of the numbers that occur.

    Args:
        path: a folder, a .tar file, or a pattern as "birds-{train,val}-{0000..0012}.tar" or "*.tar".

    Raises:
        UserError: there are no shards, one is damaged or compressed, or images have no labels.
    """
    part_of = _parts(path)
    shards = tuple(part_of)
    with bar(len(shards) >= 20) as progress:
        indexed = [_index(shard) for shard in progress.track(shards, description="indexing shards")]
    classes, index, notes = _classes(path, shards, [label for _, labels in indexed for label in labels])
    splits: dict[str, Split] = {}
    for part in set(part_of.values()):
        which = [n for n, shard in enumerate(shards) if part_of[shard] == part]
        places = np.array([(n, *place) for n in which for place in indexed[n][0]], dtype=np.int64)
        labels = np.array([index[label] for n in which for label in indexed[n][1]], dtype=np.int64)
        splits[part] = Split(ShardImages(shards, places), labels)
    name = path.stem if path.is_file() else Path(os.path.commonpath([shard.parent for shard in shards])).resolve().name
    return complete(
        name,
        classes,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        notes=notes,
    )


def _parts(path: Path) -> dict[Path, str]:
    """The shards and the split of each."""
    files = sorted([*path.glob("*.tar"), *path.glob("*/*.tar")]) if path.is_dir() else expand(path)
    if not files:
        raise UserError(f"{path} holds no .tar files; name the folder or the files")
    parts = {file: _part(file, in_folder=file.parent != path) for file in files}
    found = set(parts.values())
    unnamed = next((file for file, part in parts.items() if not part), None)
    if unnamed is not None and len(found) > 1:
        raise UserError(f"{unnamed} does not say which split it is of, as others do; put train in its name")
    if unnamed is not None:
        return dict.fromkeys(parts, "train")
    if "train" not in found:
        raise UserError(f"{path} has shards for {' and '.join(sorted(found))}, but none for train; add them")
    return parts


def _part(file: Path, *, in_folder: bool) -> str:
    """The split of a shard by its folder or its name; an empty string where neither tells."""
    folder = SPLIT_NAMES.get(file.parent.name.lower(), "") if in_folder else ""
    if folder:
        return folder
    named = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", file.stem.lower()) if word in SPLIT_NAMES}
    if len(named) > 1:
        raise UserError(f"{file} may be of {' or '.join(sorted(named))}; put the shards into folders of these names")
    return named.pop() if named else ""


def _index(shard: Path) -> tuple[list[tuple[int, int]], list[Label]]:
    """Where the images of a shard are (first byte, bytes), and their labels, in the shard's order."""
    places: dict[str, tuple[int, int]] = {}
    labels: dict[str, dict[str, Label]] = {"cls": {}, "json": {}}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")  # as WebDataset does: at the first dot
                if not member.isfile() or not stem or not suffix:
                    continue
                key, suffix = folder + slash + stem, suffix.lower()
                if f".{suffix}" in IMG_EXTENSIONS:
                    if key in places:
                        raise UserError(f"{shard} has two images {key}; give each image a key of its own")
                    places[key] = (member.offset_data, member.size)
                elif suffix in labels:
                    content = tar.extractfile(member)
                    text = b"" if content is None else content.read()
                    label = _label(text, suffix, f"{member.name} in {shard}")
                    labels[suffix] |= {} if label is None else {key: label}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"{shard} can't be read as a tar file without compression ({error}); fetch it again, or unpack .gz"
        ) from error
    told = labels["json"] | labels["cls"]
    _check(shard, places, told)
    return list(places.values()), [told[key] for key in places]


def _check(shard: Path, places: dict[str, tuple[int, int]], told: dict[str, Label]) -> None:
    unlabelled = [key for key in places if key not in told]
    without = [key for key in told if key not in places]
    problems = []
    if not places:
        problems.append(f"{shard} holds no images; a shard has members key.jpg and key.cls, or key.json with a label")
    if unlabelled:
        problems.append(
            f"{len(unlabelled)} of {len(places)} images in {shard} have no key.cls, and no key.json with a label "
            f"({', '.join(unlabelled[:5])}); make the shard with labels"
        )
    if places and without:
        problems.append(f"{len(without)} labels in {shard} have no image ({', '.join(without[:5])}); make it again")
    raise_all(problems)


def _label(content: bytes, suffix: str, where: str) -> Label | None:
    """A class number or name; `None` for a JSON file that is about something else."""
    try:
        text = content.decode().strip()
        told = json.loads(text) if suffix == "json" else None
    except ValueError as error:
        raise UserError(f"{where} is damaged ({error}); make the shard again") from error
    if suffix == "json":
        label = told.get("label") if isinstance(told, dict) else None
        if label is None or (isinstance(label, int | str) and not isinstance(label, bool)):
            return label
        raise UserError(f"{where} has the label {label!r}; it must be a number or a name")
    if not text:
        raise UserError(f"{where} is empty; write the class into it")
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _classes(
    path: Path, shards: Sequence[Path], labels: Sequence[Label]
) -> tuple[list[str], dict[Label, int], list[str]]:
    """Class names, the index of each label, and what a reader should know."""
    found = set(labels)
    numbers = sorted(label for label in found if isinstance(label, int))
    names = sorted(label for label in found if isinstance(label, str))
    if numbers and names:
        raise UserError(f"{path} has labels of both kinds, numbers ({numbers[0]}) and names ({names[0]}); choose one")
    folders = {shard.parent for shard in shards}
    folders |= {folder.parent for folder in folders if folder.name.lower() in SPLIT_NAMES}
    listed = sorted(folder / name for folder in folders for name in CLASS_FILES if (folder / name).is_file())
    if listed:
        classes = [line.strip() for line in listed[0].read_text(encoding="utf-8").splitlines() if line.strip()]
        index: dict[Label, int] = {name if names else label: label for label, name in enumerate(classes)}
        unknown = sorted(str(label) for label in found if label not in index)
        if unknown:
            few = ", ".join(unknown[:5])
            raise UserError(f"{listed[0]} names {len(classes)} classes, and none for {few}; complete it")
        return classes, index, [f"Class names are from {listed[0].name}."]
    ordered: list[Label] = [*numbers, *names]
    notes = ["Classes are called by their numbers; a classes.txt beside the shards would name them."] if numbers else []
    return [str(label) for label in ordered], {label: n for n, label in enumerate(ordered)}, notes


def _member_at(shard: Path, start: int) -> str:
    """What a member is called; looked up when something is wrong with it, for a million names would fill memory."""
    with tarfile.open(shard, "r:") as tar:
        return next((member.name for member in tar if member.offset_data == start), f"byte {start}")
