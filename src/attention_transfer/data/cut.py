"""Cutting a share off a labelled set, for the splits that its makers did not publish."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attention_transfer.data.images import Split, Splits
from attention_transfer.errors import UserError

Indices = NDArray[np.int64]

SHARE = 0.2
"""Share of the images that becomes a split that is not there."""

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


def cut(labels: Indices, share: float, *, seed: int = 0) -> tuple[Indices, Indices]:
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


def complete(
    name: str,
    classes: Sequence[str],
    *,
    train: Split,
    validation: Split | None = None,
    test: Split | None = None,
    notes: Sequence[str] = (),
) -> Splits:
    """Three splits out of those that there are.

    Where there is no test split, the validation split is it, for that is what is reported then. What is still missing
    is cut off the training images, 20 % of each class; every such choice is a note.

    Args:
        name: of the data set.
        classes: class names, in the order of the labels.
        train: what there is to learn from.
        validation: as published, or `None`.
        test: as published, or `None`.
        notes: what else a reader should know.

    Raises:
        UserError: nothing can be cut off, because each class has one image.
    """
    made = list(notes)
    if test is None and validation is not None:
        validation, test = None, validation
        made.append("The validation split is taken as the test split, because there is no other.")
    if test is None:
        train, test = _cut_off(name, train, "test")
        made.append(f"The test split is {SHARE:.0%} of the images, cut off by class, because none was given.")
    if validation is None:
        train, validation = _cut_off(name, train, "validation")
        made.append(f"The validation split is {SHARE:.0%} of the training images, cut off by class.")
    return Splits(name, tuple(classes), train, validation, test, tuple(made))


def _cut_off(name: str, split: Split, wanted: str) -> tuple[Split, Split]:
    kept, off = cut(split.labels, SHARE)
    if not len(off):
        raise UserError(
            f"{name} has no class with two training images, so no {wanted} split can be cut off; add images"
        )
    return split.take(kept), split.take(off)
