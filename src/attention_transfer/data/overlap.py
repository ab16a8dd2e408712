"""Find validation and test images that are also among the training images, which makes reported results too good."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.data.decoding import in_mode
from attention_transfer.data.images import ArrayImages, FileImages, Images, Splits
from attention_transfer.data.threads import in_threads
from attention_transfer.errors import UserError

log = logging.getLogger("attention_transfer")

HeldOut = Literal["test", "validation"]
Contents = dict[int, bytes]
"""Digests of images, by index; images that can't have an equal are left out."""

K = TypeVar("K", bound=Hashable)

_END = 4096  # bytes; the end of a compressed file differs, where its head is that of every photograph of a camera
_TITLE = "comparing splits"
_FOUND: dict[int, list[Contents]] = {}
"""Earlier results, by paths, sizes and times of change: a comparison loads the same images for every run."""


@dataclass(frozen=True)
class Twin:
    """A held-out image and the training images that equal it.

    Attributes:
        split: where it is held out.
        image: its file, or its index in that split where it has no file.
        train: the training images, likewise; at least one.
    """

    split: HeldOut
    image: Path | int
    train: tuple[Path | int, ...]


def find_overlap(splits: Splits, subset: NDArray[np.int64] | None = None) -> tuple[Twin, ...] | None:
    """Find test and validation images that are also among the training images.

    Files are equal byte by byte: files of one size are compared by their last 4 KiB, and by a hash of the whole if
    these are equal. Images in memory are compared by their pixels. Archives are not searched, because every image
    would have to be read; `inspect_data` decodes all images and also finds equal pixels in different files.

    Args:
        splits: the data set.
        subset: indices of the training images that are used, int64 (n,); default all.

    Returns:
        One for each such image, the test split first, by index; `None` if the images are in archives.

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
    return tuple(
        Twin(part, _name(images, index), tuple(_name(splits.train.images, other) for other in trained[content]))
        for (part, images), held_out in zip(parts.items(), contents[1:], strict=True)
        for index, content in held_out.items()
        if content in trained
    )


def pixel_digest(image: Image.Image) -> bytes:
    """A 16-byte digest of an image's pixels; a grey image equals an RGB image of the same greys."""
    size = f"{image.width}x{image.height}".encode()
    return hashlib.blake2b(size + in_mode(image, "RGB").tobytes(), digest_size=16).digest()


def _contents(everything: Sequence[Images]) -> list[Contents] | None:
    """Digests of training, test and validation images; `None` if they are in archives."""
    files = [images for images in everything if isinstance(images, FileImages)]
    if len(files) == len(everything):
        return _of_files(files)
    if not all(isinstance(images, ArrayImages) for images in everything):
        return None
    return [dict(enumerate(in_threads(partial(_pixels, images), range(len(images)), _TITLE))) for images in everything]


def _pixels(images: Images, index: int) -> bytes:
    return pixel_digest(images[index])


def _of_files(everything: Sequence[FileImages]) -> list[Contents]:
    """Digests of files: compared by size, then by their ends, then whole, so that few files are read in full."""
    paths = [path for images in everything for path in images.paths]
    starts = np.cumsum([0, *map(len, everything)]).tolist()
    stats = in_threads(_stat, paths, _TITLE)
    key = hash((*starts, *paths, *stats))
    if key not in _FOUND:
        known = _in_both({index: size for index, (size, _) in enumerate(stats)}, starts[1])
        ends = in_threads(lambda index: file_digest(paths[index], max(0, known[index] - _END)), [*known], _TITLE)
        similar = _in_both(dict(zip(known, zip(known.values(), ends, strict=True), strict=True)), starts[1])
        whole = in_threads(lambda index: file_digest(paths[index]), [*similar], _TITLE)
        equal = _in_both(dict(zip(similar, whole, strict=True)), starts[1])
        _FOUND[key] = [{index - a: equal[index] for index in equal if a <= index < b} for a, b in pairwise(starts)]
    return _FOUND[key]


def _in_both(keys: Mapping[int, K], training: int) -> dict[int, K]:
    """The items whose key occurs both among the training images, which come first, and among the others."""
    trained = {key for index, key in keys.items() if index < training}
    both = {key for index, key in keys.items() if index >= training and key in trained}
    return {index: key for index, key in keys.items() if key in both}


def _stat(path: Path) -> tuple[int, int]:
    """Bytes, and the time of change."""
    try:
        status = path.stat()
    except OSError as error:
        raise _gone(path, error) from error
    return status.st_size, status.st_mtime_ns


def file_digest(path: Path, start: int = 0) -> bytes:
    """A 16-byte digest of a file's content, from a byte on.

    Raises:
        UserError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
        raise _gone(path, error) from error


def _gone(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} can't be read ({error.strerror}), but was there when the data set was loaded; restore it")


def _name(images: Images, index: int) -> Path | int:
    """The file of an image, or its index where it has no file."""
    return images.path(index) if isinstance(images, FileImages) else index
