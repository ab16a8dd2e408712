"""Labelled subsets: a share of each class, or a number of images of each; and weights for unequal classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attention_transfer.errors import UserError, raise_all


def check_subset(fraction: float, shots: int | None) -> list[str]:
    """What is wrong with a choice of labels, a sentence each."""
    problems = []
    if not 0 < fraction <= 1:
        problems.append(f"fraction is {fraction}; give the share of the labels to use, above 0 and at most 1")
    if shots is not None and shots < 1:
        problems.append(f"shots is {shots}; give at least 1 labelled image a class")
    if shots is not None and fraction != 1:
        problems.append(f"fraction={fraction} and shots={shots} both choose the labels; give one of them")
    return problems


def labelled_subset(
    labels: Sequence[int] | NDArray[np.int64],
    *,
    fraction: float = 1.0,
    shots: int | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> NDArray[np.int64]:
    """Choose a stratified, seeded subset.

    Subsets of one seed are nested: those of fewer shots or a smaller fraction lie within those of more.

    Args:
        labels: class of each image, (n,).
        fraction: share of each class, in (0, 1]; at least one image a class.
        shots: images of each class; takes the place of `fraction`.
        seed: which images.
        names: class names for messages; default their numbers.

    Returns:
        Sorted indices into `labels`, int64.

    Raises:
        UserError: the choice is out of bounds, or a class has fewer images than shots.
    """
    raise_all(check_subset(fraction, shots))
    classes, counts = np.unique(np.asarray(labels), return_counts=True)
    if shots is not None and shots > counts.min():
        rarest = int(classes[counts.argmin()])
        named = rarest if names is None else names[rarest]
        raise UserError(f"shots is {shots}, but class {named} has only {counts.min()} images; ask for at most that")
    generator = np.random.default_rng(seed)
    chosen = []
    for label, count in zip(classes, counts, strict=True):
        members = generator.permutation(np.flatnonzero(np.asarray(labels) == label))
        chosen.append(members[: shots or max(1, round(fraction * count))])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def class_balanced_weights(labels: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights with which every class is drawn equally often: in proportion to 1 / class count.

    For a sampler that draws with replacement: `WeightedRandomSampler(class_balanced_weights(labels), len(labels))`.
    Rare images are then seen several times an epoch, and some of the frequent classes not at all.

    Args:
        labels: class of each image, (n,).

    Returns:
        A probability for each image, float64 (n,); they sum to 1.
    """
    _, places, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    weights: NDArray[np.float64] = 1 / (len(counts) * counts[places])
    return weights
