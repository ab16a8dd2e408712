"""From labelled images, as they were found, to three splits: damaged files are left out, missing splits are cut off."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from attention_transfer.data.decoding import damage
from attention_transfer.data.finder import as_text
from attention_transfer.data.images import FileImages, Split, Splits
from attention_transfer.data.threads import in_threads
from attention_transfer.errors import UserError, raise_all

CUT_SHARE = 0.2
"""Share of the images that becomes a split that is not there."""

IMBALANCE = 3
"""From this ratio between the largest and the smallest class on, a note says so."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What people call the three splits, in lower case."""

AS_GIVEN = "The three splits are used as they are given."

_INTACT: set[int] = set()
"""Files without damage, by path, size and time of change: a comparison loads the same images for every run."""


def make_splits(
    name: str,
    classes: Sequence[str],
    parts: Mapping[str, Split],
    *,
    notes: Iterable[str] = (),
    strict: bool = False,
) -> Splits:
    """Make training, validation and test splits of those that a data set has.

    Damaged files are left out. Where there is no test split, the validation split is it, for that is what is reported
    then. What is still missing is cut off the training images, 20 % of each class. Every such choice is a note.

    Args:
        name: of the data set.
        classes: class names, in the order of the labels.
        parts: the splits that there are: "train", and perhaps "validation" and "test".
        notes: what else a reader should know, a sentence each.
        strict: refuse damaged files instead of leaving them out.

    Raises:
        UserError: a split or a class has no image left, or nothing can be cut off because each class has one image;
            or, with `strict`, files are damaged, and each is named.
    """
    files = [name for split in parts.values() if isinstance(split.images, FileImages) for name in split.images.names]
    skipped = _find_damaged(files, strict=strict)
    kept = {part: _without(split, skipped) for part, split in parts.items()}
    raise_all([*_lost_classes(classes, parts["train"], kept["train"], skipped), *_lost_splits(kept, skipped)])
    made = [*notes]
    if "test" not in kept and "validation" in kept:
        kept["test"] = kept.pop("validation")
        made.append("The validation split is taken as the test split, because there is no other.")
    if "test" not in kept:
        kept["train"], kept["test"] = _cut_off(name, kept["train"], "test")
        made.append(f"The test split is {CUT_SHARE:.0%} of the images, cut off by class, because none was given.")
    if "validation" not in kept:
        kept["train"], kept["validation"] = _cut_off(name, kept["train"], "validation")
        made.append(f"The validation split is {CUT_SHARE:.0%} of the training images, cut off by class.")
    made += _remarks(classes, kept, skipped)
    return Splits(name, tuple(classes), **kept, notes=tuple(made), skipped=skipped)


def cut(labels: NDArray[np.int64], share: float, *, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut a stratified share off.

    scikit-learn's `train_test_split` refuses classes of one image, and parts with fewer images than there are classes;
    both happen in folders of people's own images.

    Args:
        labels: class of each image, int64 (n,), not negative.
        share: share of each class to cut off, above 0 and below 1. A class of two images or more gives at least one
            and keeps at least one; a class of one image keeps it.
        seed: which images. A class is cut in the same way whatever other classes there are.

    Returns:
        Sorted indices into `labels`, int64: those that are kept, and those that are cut off.

    Raises:
        UserError: the share is out of bounds.
    """
    if not 0 < share < 1:
        raise UserError(f"the share to cut off is {share}; give a number above 0 and below 1")
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    off = np.zeros(len(labels), dtype=bool)
    for label, members in zip(classes, np.split(order, starts[1:]), strict=True):
        number = min(max(1, round(share * len(members))), len(members) - 1)
        off[np.random.default_rng((seed, int(label))).permutation(members)[:number]] = True
    return np.flatnonzero(~off).astype(np.int64), np.flatnonzero(off).astype(np.int64)


def first_five(names: Sequence[object]) -> str:
    """The first five, and how many there are."""
    shown = ", ".join(repr(name) if isinstance(name, str) else str(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5:,} more"


def _cut_off(name: str, split: Split, wanted: str) -> tuple[Split, Split]:
    kept, off = cut(split.labels, CUT_SHARE)
    if not len(off):
        raise UserError(
            f"{name} has no class with two training images, so no {wanted} split can be cut off; add images"
        )
    return split.take(kept), split.take(off)


def _find_damaged(paths: Sequence[str], *, strict: bool) -> dict[str, str]:
    """Damaged files, each with the reason, by a look at the header and the end of each file."""
    reasons = in_threads(_damage, paths, "checking images")
    found = {path: reason for path, reason in zip(paths, reasons, strict=True) if reason is not None}
    if strict:
        raise_all([f"{path} {reason}" for path, reason in found.items()])
    return found


def _damage(path: str) -> str | None:
    """As `damage`, but a file that was intact and has not changed is not opened again."""
    try:
        status = os.stat(path)  # noqa: PTH116 – a million Path objects take a minute
    except OSError:
        return damage(path)
    key = hash((path, status.st_size, status.st_mtime_ns))
    if key in _INTACT:
        return None
    reason = damage(path)
    if reason is None:
        _INTACT.add(key)
    return reason


def _without(split: Split, skipped: Mapping[str, str]) -> Split:
    if not skipped or not isinstance(split.images, FileImages):
        return split
    return split.take(np.flatnonzero([path not in skipped for path in split.images.names]).astype(np.int64))


def _lost_splits(parts: Mapping[str, Split], skipped: Mapping[str, str]) -> list[str]:
    empty = [part for part, split in parts.items() if skipped and not len(split)]
    return [f"no image of the {part} split can be read; the first: {next(iter(skipped))}" for part in empty]


def _lost_classes(classes: Sequence[str], given: Split, kept: Split, skipped: Mapping[str, str]) -> list[str]:
    """Sentences on classes of which every training image is damaged."""
    problems = []
    for label in sorted({*given.labels.tolist()} - {*kept.labels.tolist()}):
        lost = given.take(np.flatnonzero(given.labels == label).astype(np.int64)).images
        first = lost.names[0] if isinstance(lost, FileImages) else ""
        problems.append(
            f"class {classes[label]!r} needs an image to train with, but all {len(lost)} are damaged: "
            f"{first} {skipped[first]}"
        )
    return problems


def _remarks(classes: Sequence[str], parts: Mapping[str, Split], skipped: Mapping[str, str]) -> list[str]:
    """Notes on classes that are rare or missing somewhere, and on files that were left out."""
    notes, counts = [], np.bincount(parts["train"].labels, minlength=len(classes))
    if counts.min() and counts.max() >= IMBALANCE * counts.min():
        most, least = classes[int(counts.argmax())], classes[int(counts.argmin())]
        notes.append(
            f"The classes are of unequal size: {counts.max():,} training images of {most!r}, "
            f"{counts.min():,} of {least!r}."
        )
    for part in ("validation", "test"):
        if missing := [classes[i] for i in sorted({*range(len(classes))} - {*parts[part].labels.tolist()})]:
            notes.append(f"The {part} split has no image of {first_five(missing)}.")
    if skipped:
        path, reason = next(iter(skipped.items()))
        kinds = Counter(re.split("[(;]", reason)[0].strip() for reason in skipped.values())
        counted = "; ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        notes.append(
            f"Damaged files are left out: {len(skipped):,} ({counted}), such as {as_text(path)}, which {reason}."
        )
    return notes
