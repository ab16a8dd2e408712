"""Decoded images that several processes share: each is decoded once, and lies in one file that all map into memory.

A comparison's workers read the same images. What one has decoded is written to the comparison's folder; the others, and
later runs, map it: the system keeps one copy of its pages, however many processes read them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attention_transfer.data.decoding import in_mode
from attention_transfer.data.images import FileImages, ImageSet
from attention_transfer.data.threads import in_threads
from attention_transfer.locking import LOCK, in_turn
from attention_transfer.writing import make_folder, sync, unfinished, write_whole, writing

log = logging.getLogger("attention_transfer")

SHARE = 4
"""The file takes at most 1 / `SHARE` of the free disk."""

_INDEX = "index.json"
_PIXELS = ".pixels"

Pixels = NDArray[np.uint8]
Place = tuple[int, tuple[int, ...]]
"""Where an array begins in the file, and its shape."""


@dataclass(frozen=True)
class MappedImages:
    """Images in a file that is mapped into memory, uint8 (height, width[, 3]) each."""

    mapped: np.memmap[tuple[int], np.dtype[np.uint8]]
    places: tuple[Place, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(_array(self.mapped, self.places[index]))

    def take(self, indices: NDArray[np.int64]) -> MappedImages:
        """The images at these indices."""
        return MappedImages(self.mapped, tuple(self.places[i] for i in indices))

    def __reduce__(self) -> tuple[Callable[..., MappedImages], tuple[object, ...]]:
        """Another process maps the file itself."""
        return _mapped_again, (self.mapped.filename, self.places)


def _mapped_again(file: Path, places: tuple[Place, ...]) -> MappedImages:
    return MappedImages(_mapped(file), places)


@dataclass(frozen=True)
class SharedPixels:
    """Arrays of pixels in a folder, each written once, by whichever process needs it first.

    Attributes:
        folder: where they are; it is made.
    """

    folder: Path

    def has_room(self, needed: int, name: str) -> bool:
        """Whether so many bytes take at most a quarter of the free disk; if not, that is logged."""
        free = shutil.disk_usage(next(place for place in (self.folder, *self.folder.parents) if place.is_dir())).free
        if needed > free // SHARE:
            log.info("%s: each process decodes its own images, for there is too little free disk to share them", name)
        return needed <= free // SHARE

    def decoded(self, images: FileImages, mode: str) -> MappedImages:
        """Whole images, in the mode "L" or "RGB".

        Raises:
            UserError: a file can't be read.
        """
        keys = [_digest(mode, file) for file in _states(images)]
        return MappedImages(*self._shared(keys, lambda index: np.asarray(in_mode(images[index], mode))))

    def pixels(self, images: ImageSet, files: FileImages) -> Tensor:
        """What a deterministic transform makes of all images of a set, uint8 (n, channels, height, width).

        Args:
            images: the set; its transform says in its `repr` what it does.
            files: its images.

        Raises:
            UserError: a file can't be read.
        """
        key = _digest(repr(images.transform), *_states(files))

        def made(_: int) -> Pixels:
            items = in_threads(images.__getitem__, range(len(images)), "reading images")
            return torch.stack([image for image, _ in items]).numpy()

        mapped, (place,) = self._shared([key], made)
        return torch.from_numpy(_array(mapped, place))

    def remove(self) -> None:
        """Remove what was written here; who has mapped the file keeps that, and who comes later decodes again."""
        if self.folder.is_dir():
            with in_turn(self.folder / LOCK, self.folder):
                index = self.folder / _INDEX
                for file in (index, unfinished(index), *self.folder.glob(f"*{_PIXELS}")):
                    file.unlink(missing_ok=True)
            with suppress(OSError):  # another process is about to write there, or something else lies there
                self.folder.rmdir()

    def _shared(
        self, keys: Sequence[str], make: Callable[[int], Pixels]
    ) -> tuple[np.memmap[tuple[int], np.dtype[np.uint8]], tuple[Place, ...]]:
        """The file, and the places of the arrays of these keys, of which those that are missing are made."""
        while True:
            file, known = self._index()
            if file is None or not known.keys() >= set(keys):
                with in_turn(self.folder / LOCK, self.folder):
                    file, known = self._index()
                    file = file or self.folder / f"{uuid4().hex}{_PIXELS}"  # never the name of one that was removed
                    missing = {index: key for index, key in enumerate(keys) if key not in known}
                    known |= self._added(file, missing, known, make)
                    write_whole(self.folder / _INDEX, json.dumps({"file": file.name, "places": known}))
            with suppress(FileNotFoundError):  # removed since the index was read
                return _mapped(file), tuple(known[key] for key in keys)

    def _index(self) -> tuple[Path | None, dict[str, Place]]:
        try:
            found = json.loads((self.folder / _INDEX).read_bytes())
        except FileNotFoundError:
            return None, {}
        file = self.folder / found["file"]
        places = {key: (start, tuple(shape)) for key, (start, shape) in found["places"].items()}
        return (file, places) if file.is_file() else (None, {})

    def _added(
        self, file: Path, keys: dict[int, str], known: dict[str, Place], make: Callable[[int], Pixels]
    ) -> dict[str, Place]:
        """Make arrays, and write them behind those that are known: over what a process left that was killed."""
        places: dict[str, Place] = {}
        end = max((start + int(np.prod(shape)) for start, shape in known.values()), default=0)
        one_at_a_time = threading.Lock()
        make_folder(self.folder)
        with writing(file), file.open("r+b" if file.exists() else "xb") as stream:

            def add(index: int) -> None:
                nonlocal end
                array = make(index)
                with one_at_a_time:
                    stream.seek(end)
                    stream.write(array.tobytes())
                    places[keys[index]] = (end, array.shape)
                    end += array.size

            in_threads(add, list(keys), "reading images")
            stream.flush()
        sync(file)
        return places


def _states(images: FileImages) -> list[str]:
    """Each file with its size and time of change; one that is gone is named when it is read."""
    found = []
    for name in images.names:
        status = os.stat(name) if os.path.exists(name) else None  # noqa: PTH110, PTH116 - a million Paths take a minute
        found.append(f"{name} {'' if status is None else (status.st_size, status.st_mtime_ns)}")
    return found


def _digest(*parts: str) -> str:
    return blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _mapped(file: Path) -> np.memmap[tuple[int], np.dtype[np.uint8]]:
    """The bytes of a file; what is written to them stays in this process."""
    return np.memmap(file, np.uint8, "c")


def _array(mapped: Pixels, place: Place) -> Pixels:
    start, shape = place
    return mapped[start : start + int(np.prod(shape))].reshape(shape)
