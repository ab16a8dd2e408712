"""Validation and test images that are trained on, too: what is reported of them is too good then."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.data.decoding import in_mode
from attention_transfer.data.images import ArrayImages, FileImages, Images, Splits
from attention_transfer.data.threads import MANY, in_threads
from attention_transfer.errors import UserError
from attention_transfer.ui import bars

log = logging.getLogger("attention_transfer")

HeldOut = Literal["test", "validation"]
Contents = dict[int, bytes]
"""What images hold, by index; those that can't be anywhere else are left out."""

K = TypeVar("K", bound=Hashable)

_END = 4096  # bytes; the end of a compressed file differs, where its head is that of every photograph of a camera
_TITLE = "comparing splits"
_FOUND: dict[int, list[Contents]] = {}
"""What was found, by paths, sizes and times of change: a comparison loads the same images for every run."""


@dataclass(frozen=True)
class Twin:
    """A held-out image, and the training images that equal it.

    Attributes:
        split: where it is held out.
        image: its file, or its index in that split where it has no file.
        train: the training images, likewise; at least one.
    """

    split: HeldOut
    image: Path | int
    train: tuple[Path | int, ...]


def find_overlap(splits: Splits, subset: NDArray[np.int64] | None = None) -> tuple[Twin, ...] | None:
    """Test and validation images that are among the training images, too.

    Files are equal byte by byte: those of one size are compared by their last 4 KiB, and where these are equal by a
    hash of the whole. Images in memory are equal by their pixels. Archives are not looked into, for every image would
    have to be fetched; `inspect_data` decodes them all, and finds equal pixels in different files, too.

    Args:
        splits: the data set.
        subset: indices of the training images that are used, int64 (n,); default all.

    Returns:
        One for each such image, of the test split first, by index; `None` where the images are in archives.

    Raises:
        UserError: a file can't be read any more.
    """
    parts: dict[HeldOut, Images] = {"test": splits.test.images, "validation": splits.validation.images}
    contents = _contents([splits.train.images, *parts.values()])
    if contents is None:
        log.debug("%s: the splits are not compared, because their images are in archives", splits.name)
        return None
    trained: dict[bytes, list[int]] = {}
    for index in range(len(splits.train)) if subset is None else subset.tolist():
        if index in contents[0]:
            trained.setdefault(contents[0][index], []).append(index)
    names = _names(splits.train.images, [index for indices in trained.values() for index in indices])
    found: list[Twin] = []
    for (part, images), held_out in zip(parts.items(), contents[1:], strict=True):
        equal = {index: trained[content] for index, content in held_out.items() if content in trained}
        shown = _names(images, [*equal])
        found += [Twin(part, shown[at], tuple(names[index] for index in equal[at])) for at in equal]
    return tuple(found)


def pixel_digest(image: Image.Image) -> bytes:
    """What an image shows, as 16 bytes: a grey image equals one in colours that are all grey."""
    size = f"{image.width}x{image.height}".encode()
    return hashlib.blake2b(size + in_mode(image, "RGB").tobytes(), digest_size=16).digest()


def file_digest(path: Path) -> bytes:
    """What a file holds, as 16 bytes.

    Raises:
        UserError: it can't be read.
    """
    return _digest(path, 0)


def _contents(everything: Sequence[Images]) -> list[Contents] | None:
    """Of training, test and validation images; `None` where they are in archives."""
    files = [images for images in everything if isinstance(images, FileImages)]
    if len(files) == len(everything):
        return _of_files(files)
    if all(isinstance(images, ArrayImages) for images in everything):
        return _of_pixels(everything)
    return None


def _of_pixels(everything: Sequence[Images]) -> list[Contents]:
    total = sum(map(len, everything))
    with bars(visible=total >= MANY) as progress:
        task = progress.add_task(_TITLE, total=total)
        found: list[Contents] = []
        for images in everything:
            found.append({})
            for index in range(len(images)):
                found[-1][index] = pixel_digest(images[index])
                progress.advance(task)
    return found


def _of_files(everything: Sequence[FileImages]) -> list[Contents]:
    """By size, then by the end, and whole: few files that have no equal are read, and only their ends."""
    paths = [path for images in everything for path in images.paths]
    starts = np.cumsum([0, *map(len, everything)]).tolist()
    there = in_threads(_stat, paths, _TITLE)
    key = hash((*starts, *paths, *there))
    if key not in _FOUND:
        known = _in_both({index: size for index, (size, _) in enumerate(there)}, starts[1])
        ends = in_threads(lambda index: _digest(paths[index], max(0, known[index] - _END)), [*known], _TITLE)
        alike = _in_both(dict(zip(known, zip(known.values(), ends, strict=True), strict=True)), starts[1])
        whole = in_threads(lambda index: file_digest(paths[index]), [*alike], _TITLE)
        equal = _in_both(dict(zip(alike, whole, strict=True)), starts[1])
        _FOUND[key] = [{index - a: equal[index] for index in equal if a <= index < b} for a, b in pairwise(starts)]
    return _FOUND[key]


def _in_both(keys: Mapping[int, K], training: int) -> dict[int, K]:
    """Those whose key is that of a training image, which come first, and that of another."""
    trained = {key for index, key in keys.items() if index < training}
    both = {key for index, key in keys.items() if index >= training and key in trained}
    return {index: key for index, key in keys.items() if key in both}


def _stat(path: Path) -> tuple[int, int]:
    """Bytes, and the time of change."""
    try:
        there = path.stat()
    except OSError as error:
        raise _gone(path, error) from error
    return there.st_size, there.st_mtime_ns


def _digest(path: Path, start: int) -> bytes:
    """Of a file from a byte on."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
        raise _gone(path, error) from error


def _gone(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} can't be read ({error.strerror}), but was there when the data set was loaded; restore it")


def _names(images: Images, indices: Sequence[int]) -> dict[int, Path | int]:
    """The files of some images, or their indices where they have no file."""
    if not isinstance(images, FileImages):
        return {index: index for index in indices}
    return dict(zip(indices, images.take(np.array(indices, dtype=np.int64)).paths, strict=True))
