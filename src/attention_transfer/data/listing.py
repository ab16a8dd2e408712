"""From a list of image files to splits: damaged files are left out, and what is not given is cut from training."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attention_transfer.data.cut import complete
from attention_transfer.data.files import damage
from attention_transfer.data.find import as_text
from attention_transfer.data.images import FileImages, Split, Splits
from attention_transfer.data.threads import in_threads
from attention_transfer.errors import raise_all

IMBALANCE = 3
"""From this ratio between the largest and the smallest class on, a note says so."""

_SOUND: set[int] = set()
"""Files that were in order, by path, size and time of change: a comparison loads the same images for every run."""


@dataclass(frozen=True)
class Listing:
    """Image files with their classes, as they were found.

    Attributes:
        name: what people call the data set.
        classes: class names, in the order of the labels.
        paths: the files of each split that is given: train, and perhaps validation and test.
        labels: their classes.
        notes: what was noticed on the way.
    """

    name: str
    classes: tuple[str, ...]
    paths: Mapping[str, Sequence[str]]
    labels: Mapping[str, Sequence[int]]
    notes: tuple[str, ...] = ()


def splits_of(listing: Listing, *, strict: bool = False) -> Splits:
    """Leave out damaged files, and cut the splits that are not given.

    Raises:
        UserError: a class has no image to train with, or there are too few to cut; or, with `strict`, files are
            damaged, and each is named.
    """
    skipped = find_damaged([path for paths in listing.paths.values() for path in paths], strict=strict)
    given = {part: _split(listing, part, skipped) for part in listing.paths}
    raise_all([*_empty_classes(listing, given["train"], skipped), *unreadable_splits(given, skipped)])
    notes = ["The three splits are used as they are given.", *listing.notes] if len(given) == 3 else listing.notes
    splits = complete(
        listing.name,
        listing.classes,
        train=given["train"],
        validation=given.get("validation"),
        test=given.get("test"),
        notes=notes,
    )
    return with_remarks(replace(splits, skipped=skipped))


def find_damaged(paths: Sequence[str] | Sequence[Path], *, strict: bool) -> dict[str, str]:
    """Damaged files, each with the reason, by a look at the header and the end of each file.

    Raises:
        UserError: `strict`, and there are any; each is named.
    """
    names = [str(path) for path in paths]
    reasons = in_threads(_damage, names, "checking images")
    found = {name: reason for name, reason in zip(names, reasons, strict=True) if reason is not None}
    if strict:
        raise_all([f"{path} {reason}" for path, reason in found.items()])
    return found


def _damage(path: str) -> str | None:
    """As `damage`, but a file that was in order and has not changed is not opened again."""
    try:
        there = os.stat(path)  # noqa: PTH116 – a million Path objects take a minute
    except OSError:
        return damage(path)
    key = hash((path, there.st_size, there.st_mtime_ns))
    if key in _SOUND:
        return None
    reason = damage(path)
    if reason is None:
        _SOUND.add(key)
    return reason


def with_remarks(splits: Splits) -> Splits:
    """The splits, with notes on classes that are rare or missing somewhere and on files that were left out."""
    notes, counts = [*splits.notes], np.bincount(splits.train.labels, minlength=len(splits.classes))
    if counts.min() and counts.max() >= IMBALANCE * counts.min():
        most, least = splits.classes[counts.argmax()], splits.classes[counts.argmin()]
        notes.append(
            f"The classes are of unequal size: {counts.max():,} training images of {most!r}, "
            f"{counts.min():,} of {least!r}."
        )
    for name, split in (("validation", splits.validation), ("test", splits.test)):
        missing = [splits.classes[i] for i in sorted({*range(len(splits.classes))} - {*split.labels.tolist()})]
        if missing:
            notes.append(f"The {name} split has no image of {named(missing)}.")
    if splits.skipped:
        path, reason = next(iter(splits.skipped.items()))
        kinds = Counter(re.split("[(;]", reason)[0].strip() for reason in splits.skipped.values())
        counted = "; ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        notes.append(
            f"Damaged files are left out: {len(splits.skipped):,} ({counted}), such as {as_text(path)}, which {reason}."
        )
    return replace(splits, notes=tuple(notes))


def unreadable_splits(parts: Mapping[str, Split], skipped: Mapping[str, str]) -> list[str]:
    """Sentences on splits of which nothing is left, because every file is damaged."""
    empty = [part for part, split in parts.items() if skipped and not len(split)]
    return [f"no image of the {part} split can be read; the first of all: {next(iter(skipped))}" for part in empty]


def named(names: Sequence[object]) -> str:
    """The first five, and how many there are."""
    shown = ", ".join(repr(name) if isinstance(name, str) else str(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5:,} more"


def _split(listing: Listing, part: str, skipped: Mapping[str, str]) -> Split:
    pairs = zip(listing.paths[part], listing.labels[part], strict=True)
    kept = [(path, label) for path, label in pairs if path not in skipped]
    labels: NDArray[np.int64] = np.array([label for _, label in kept], dtype=np.int64)
    return Split(FileImages(path for path, _ in kept), labels)


def _empty_classes(listing: Listing, train: Split, skipped: Mapping[str, str]) -> list[str]:
    problems = []
    for label in sorted({*range(len(listing.classes))} - {*train.labels.tolist()}):
        paths = [path for path, of in zip(listing.paths["train"], listing.labels["train"], strict=True) if of == label]
        found = f"all {len(paths)} are damaged: {paths[0]} {skipped[paths[0]]}" if paths else "there is none"
        problems.append(f"class {listing.classes[label]!r} needs an image to train with, but {found}")
    return problems
