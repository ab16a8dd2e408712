"""Decoded images kept in memory, where they fit.

Evaluation sees the same pixels every time, so the final pixels are kept. Training draws new crops every time, so whole
decoded images are kept: shrinking them first would change the crops.

Both caches are filled before any worker process starts. Forked workers share them; spawned workers share the tensors
and get their own copy of decoded images. The runs of a comparison share both by a file (`shared.py`).
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from attention_transfer.data.decoding import Damaged, opened
from attention_transfer.data.images import FileImages, Images, ImageSet
from attention_transfer.data.shared import SharedPixels
from attention_transfer.data.threads import in_threads

log = logging.getLogger("attention_transfer")

SHARE = 4
"""A cache takes at most 1 / `SHARE` of the free memory."""

_NOTHING = 2**20
"""Below this many bytes, as for the 8x8 digits, the decision is only logged for debugging."""

_GROUP = Path("/sys/fs/cgroup")  # Linux's account of a container


@dataclass(frozen=True)
class DecodedImages:
    """Images in memory, each of its own size and mode."""

    images: tuple[Image.Image, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        return self.images[index]

    def take(self, indices: NDArray[np.int64]) -> DecodedImages:
        """The images at these indices."""
        return DecodedImages(tuple(self.images[i] for i in indices))


def keep_pixels(
    images: ImageSet, name: str, *, free: int | None = None, shared: SharedPixels | None = None
) -> Dataset[tuple[Tensor, ...]]:
    """Compute a set with a deterministic transform once and keep it, if it fits into a quarter of the free memory.

    Args:
        images: what evaluation reads.
        name: what to call it in the log, which says what was decided and why.
        free: bytes of free memory; default what the system has.
        shared: where the pixels of image files are kept for other processes, too, if there is room.

    Returns:
        A `TensorDataset` of the same items, or `images` itself.
    """
    if not len(images):
        return images
    one = images.transform(Image.new("L", (1, 1)))  # as large as any other, and read from no file
    needed = len(images) * one.numel() * one.element_size()
    if not _fits(name, len(images), needed, free):
        return images
    if shared is not None and isinstance(images.images, FileImages) and shared.has_room(needed, name):
        return TensorDataset(shared.pixels(images, images.images), torch.tensor(images.labels))
    return images.materialised()


def keep_decoded(
    images: Images,
    name: str,
    *,
    free: int | None = None,
    shared: SharedPixels | None = None,
    mode: str = "RGB",
) -> Images:
    """Decode image files once and keep them, if they fit into a quarter of the free memory.

    Args:
        images: what training reads; images that are in memory already are returned as they are.
        name: what to call them in the log, which says what was decided and why.
        free: bytes of free memory; default what the system has.
        shared: where they are kept for other processes, too, if there is room.
        mode: what they are converted to before they are shared, "L" or "RGB".

    Returns:
        The same images.
    """
    if not isinstance(images, FileImages):
        return images
    free = free_memory() if free is None else free
    needed = _decoded_bytes(images, enough=free // SHARE)
    if not _fits(name, len(images), needed, free):
        return images
    if shared is not None and len(images) and shared.has_room(needed, name):
        return shared.decoded(images, mode)
    return DecodedImages(tuple(in_threads(images.__getitem__, range(len(images)), f"reading {name} images")))


def free_memory() -> int:
    """Bytes of memory available without swapping, within the container's limit."""
    limit = _free_in_container()
    available = _free_in_system()
    return available if limit is None else min(available, limit)


def _free_in_system() -> int:
    table = Path("/proc/meminfo")
    if table.is_file():  # Linux; its count of free pages leaves out cached files, which give way
        lines = dict(line.split(":") for line in table.read_text(encoding="utf-8").splitlines())
        if "MemAvailable" in lines:
            return int(lines["MemAvailable"].split()[0]) * 1024
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _free_in_container() -> int | None:
    if not (_GROUP / "memory.max").is_file():
        return None
    limit = (_GROUP / "memory.max").read_text(encoding="utf-8").strip()
    if limit == "max":
        return None
    counts = dict(line.split() for line in (_GROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
    current = (_GROUP / "memory.current").read_text(encoding="utf-8")
    used = int(current) - int(counts["inactive_file"])  # cached files give way
    return max(0, int(limit) - used)


def _fits(name: str, images: int, needed: int, free: int | None) -> bool:
    free = free_memory() if free is None else free
    fits = needed <= free // SHARE
    log.log(
        logging.DEBUG if needed < _NOTHING else logging.INFO,
        "%s: %s images are %s (%s, %s a quarter of the %s of free memory)",
        name,
        f"{images:,}",
        "kept in memory" if fits else "decoded whenever they are needed",
        _size(needed) if fits else f"at least {_size(needed)}",
        "within" if fits else "more than",
        _size(free),
    )
    return fits


def _decoded_bytes(images: FileImages, *, enough: int) -> int:
    """Bytes of the decoded images, by their headers; counting stops once there are more than `enough`."""
    total = 0
    for path in images.paths:
        try:
            with opened(path) as image:
                wide = 4 if image.mode.startswith(("I", "F")) else 1 if len(image.getbands()) == 1 else 4
                total += image.width * image.height * wide  # Pillow stores three channels in four bytes
        except Damaged:
            continue  # it is named when it is decoded
        if total > enough:
            break
    return total


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.1f} MB"
