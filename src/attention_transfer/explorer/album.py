"""The images that may be looked at: those that were offered at the start, and those that one session uploads."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

from PIL import Image

from attention_transfer.config.choices import SplitName
from attention_transfer.data import load_data, read_image
from attention_transfer.data.decoding import Damaged, decode, in_mode, opened
from attention_transfer.data.threads import in_threads
from attention_transfer.errors import UserError, raise_all
from attention_transfer.evaluation.image_files import ImageFile, find_images
from attention_transfer.evaluation.subjects import spread

UPLOAD_BYTES = 20_000_000
UPLOAD_PIXELS = 50_000_000
UPLOADS = 20
"""Of one session."""

UPLOADED = 1_000_000_000
"""Bytes of all sessions' uploads together."""

SIDE = 1600
"""Pixels of the longer side of an image as it is sent to the page."""

_QUALITY = 90
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF; by these, width and height are exchanged


@dataclass(frozen=True)
class Picture:
    """An image that may be looked at.

    Attributes:
        id: what the page calls it.
        name: for people.
        size: width and height in pixels, upright.
        label: the name of its class, where that is known.
        open: decodes it, upright.
    """

    id: str
    name: str
    size: tuple[int, int]
    label: str | None
    open: Callable[[], Image.Image]

    def encoded(self, side: int = SIDE) -> tuple[str, bytes]:
        """Its type and bytes for a browser: at most `side` pixels a side; PNG where that keeps small images exact."""
        image = self.open()
        shown = in_mode(image, "L" if image.mode in ("1", "L", "LA") or image.mode.startswith("I") else "RGB")
        exact = max(shown.size) <= min(side, SIDE // 4)
        shown.thumbnail((side, side), Image.Resampling.LANCZOS)
        file = BytesIO()
        if exact:
            shown.save(file, format="PNG")
        else:
            shown.save(file, format="JPEG", quality=_QUALITY)
        return "image/png" if exact else "image/jpeg", file.getvalue()


class Uploads:
    """Images of one session, as the bytes that were sent.

    Args:
        room: what all sessions have for their uploads together.
    """

    def __init__(self, room: Room) -> None:
        self.pictures: dict[str, Picture] = {}
        self._room = room
        self._bytes = 0

    def add(self, name: str, data: bytes) -> Picture:
        """Check an image and keep it.

        Raises:
            UserError: it is no image, too large, an animation, or one too many.
        """
        shown = f"the file {name[:80]!r}"
        if len(data) > UPLOAD_BYTES:
            raise UserError(f"{shown} has more than {UPLOAD_BYTES // 1_000_000} MB; make it smaller")
        if len(self.pictures) >= UPLOADS:
            raise UserError(f"{UPLOADS} images are uploaded already; reload the page to begin anew")
        try:
            with opened(data) as image:
                _check_upload(image)
            size = decode(data).size
        except Damaged as error:
            raise UserError(f"{shown} {error}") from error
        self._room.take(len(data))
        self._bytes += len(data)
        picture = Picture(f"upload-{secrets.token_urlsafe(12)}", name[:200], size, None, partial(decode, data))
        self.pictures[picture.id] = picture
        return picture

    def clear(self) -> None:
        """Forget all of them."""
        self._room.take(-self._bytes)
        self.pictures, self._bytes = {}, 0


class Room:
    """Bytes for uploads, which all sessions share."""

    def __init__(self, most: int = UPLOADED) -> None:
        self._left = most
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Take some, or give some back.

        Raises:
            UserError: there is no room.
        """
        with self._lock:
            if size > self._left:
                raise UserError("there is no room for more uploads; close other pages, or start explore again")
            self._left -= size


def offered_files(names: Sequence[str], limit: int | None) -> tuple[list[Picture], list[str]]:
    """The images of files, folders and patterns, with a folder's name as the label; their headers are read.

    Args:
        names: as `find_images` takes them.
        limit: the most of them, at even distances; `None` for all.

    Returns:
        The pictures; and what was left out, a sentence each.

    Raises:
        UserError: there is none, or a file that was named can't be read.
    """
    found = find_images(names)
    files = [found[i] for i in spread(len(found), limit)]
    left = [] if len(files) == len(found) else [f"{len(files)} of {len(found)} images are offered, at even distances"]
    sizes = in_threads(_size_or_reason, files, "looking at images")
    unread = [(file, reason) for file, reason in zip(files, sizes, strict=True) if isinstance(reason, str)]
    raise_all([reason for file, reason in unread if file.named])
    known = [(file, size) for file, size in zip(files, sizes, strict=True) if not isinstance(size, str)]
    if not known:
        raise UserError(f"none of the {len(files)} images can be read; the first: {unread[0][1]}")
    pictures = [
        Picture(str(index), str(file.place), size, _label(file), partial(read_image, file.path))
        for index, (file, size) in enumerate(known)
    ]
    return pictures, left + [f"left out: {reason}" for _, reason in unread]


def offered_data(data: str, split: SplitName, limit: int | None) -> list[Picture]:
    """Images of a data set, at even distances, with their labels."""
    found = load_data(data)
    images = found.parts[split]
    return [
        Picture(
            str(place),
            f"{split} {index}",
            images.images[int(index)].size,
            found.classes[int(images.labels[index])],
            partial(images.images.__getitem__, int(index)),
        )
        for place, index in enumerate(spread(len(images), limit))
    ]


def _check_upload(image: Image.Image) -> None:
    if image.width * image.height > UPLOAD_PIXELS:
        raise Damaged(f"has more than {UPLOAD_PIXELS // 1_000_000} million pixels; make it smaller")
    if getattr(image, "n_frames", 1) > 1:
        raise Damaged("holds several pictures (an animation, or pages); save one of them")


def _label(file: ImageFile) -> str | None:
    """The name of the folder that an image of a folder lies in; `None` for one that was named itself."""
    return file.place.parent.name or None


def _size_or_reason(file: ImageFile) -> tuple[int, int] | str:
    """Width and height of an upright image, from its header; or why it can't be read."""
    try:
        with opened(Path(file.path)) as image:
            turned = image.getexif().get(_ORIENTATION, 1) in _TURNED
            return (image.height, image.width) if turned else image.size
    except Damaged as error:
        return f"{file.path} {error}"
