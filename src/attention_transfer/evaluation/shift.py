"""How well classifiers do on shifted images, against unshifted ones of the same classes.

Shapes: N images, C classes of a model, S of them that a shifted set has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from attention_transfer.data import Split
from attention_transfer.data.corruptions import CORRUPTIONS
from attention_transfer.errors import UserError
from attention_transfer.evaluation.intervals import (
    Estimate,
    PairedDifference,
    bca,
    mean_difference,
    paired_difference,
)
from attention_transfer.evaluation.metrics import image_scores
from attention_transfer.evaluation.shifted_images import ShiftedSet

MATCHED = 0.01
"""Two models are matched where their accuracies on unshifted images differ by at most this much."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ShiftScore:
    """How good one model is on one shifted set.

    Attributes:
        model: as it was named.
        shift: the set.
        corruption: what was done to the images, in a tree of corrupted images; `None` elsewhere.
        severity: how much of it, from 1 to 5; `None` likewise.
        images: how many there are.
        classes: how many of the data set's classes they have. Where these are fewer, only their logits compete, on the
            shifted and on the unshifted images alike.
        top1: accuracy on the shifted images, in [0, 1], with a BCa interval over images.
        unshifted: accuracy on the data set's own images of the same classes.
        drop: unshifted minus shifted accuracy; the two are taken as independent samples of images.
    """

    model: str
    shift: str
    corruption: str | None
    severity: int | None
    images: int
    classes: int
    top1: Estimate
    unshifted: Estimate
    drop: Estimate


@dataclass(frozen=True)
class ShiftDifference:
    """How far two models differ on one shifted set, first minus second.

    Attributes:
        models: their names.
        shift: the set.
        top1: difference of accuracy on the shifted images, paired image by image: the raw comparison.
        unshifted: the same on the data set's own images of the same classes.
        matched: whether the accuracies on these differ by at most 1 point, so that `top1` compares robustness alone.
        beyond: what is left of `top1` when `unshifted` is taken off.
    """

    models: tuple[str, str]
    shift: str
    top1: PairedDifference
    unshifted: PairedDifference
    matched: bool
    beyond: Estimate


@dataclass(frozen=True)
class CorruptionError:
    """A model's errors over a tree of corrupted images.

    Attributes:
        model: as it was named.
        corruptions: how many; the paper's fifteen alone where any of these is there.
        error: mean over corruptions of the mean over severities, in [0, 1]; no other network's errors are in it.
        mce: mean over corruptions of the ratio of this model's error, summed over severities, to that of the first
            model that was named; `None` for one model, or where the first makes no error. The paper's is relative to
            AlexNet.
    """

    model: str
    corruptions: int
    error: float
    mce: float | None


@dataclass(frozen=True)
class Shifts:
    """What was found out on shifted images.

    Attributes:
        scores: of each model on each set.
        differences: of every two models on each set.
        corruption: of each model, over all corruptions; empty where no set is a corruption.
    """

    scores: tuple[ShiftScore, ...]
    differences: tuple[ShiftDifference, ...]
    corruption: tuple[CorruptionError, ...]


@dataclass(frozen=True)
class Judged:
    """A model, its logits on unshifted images, and how to get others.

    Attributes:
        name: as it was named.
        place: where in the model's classes each class of the data set is.
        logits: (N, C), of the unshifted images.
        run: gives logits of other images.
    """

    name: str
    place: NDArray[np.int64]
    logits: Floats
    run: Callable[[Split], Floats]


def measure_shifts(models: Sequence[Judged], labels: NDArray[np.int64], sets: Sequence[ShiftedSet]) -> Shifts:
    """Measure every model on every shifted set.

    Args:
        models: with their logits on the data set's own images.
        labels: the data set's class of each of these, (N,).
        sets: shifted images.

    Raises:
        UserError: none of the data set's own images is of a class of a set.
    """
    scores, differences = [], []
    for shifted in sets:
        own = np.isin(labels, shifted.classes)
        if not own.any():
            raise UserError(f"no unshifted image is of the classes of {shifted.name}; take more with --limit")
        right = [
            (
                _right(model.run(shifted.split), shifted.split.labels, shifted.classes, model.place),
                _right(model.logits[own], labels[own], shifted.classes, model.place),
            )
            for model in models
        ]
        scores += [_score(model.name, shifted, *each) for model, each in zip(models, right, strict=True)]
        differences += [
            _difference((models[i].name, models[j].name), shifted.name, right[i], right[j])
            for i, j in combinations(range(len(models)), 2)
        ]
    return Shifts(tuple(scores), tuple(differences), tuple(corruption_errors(scores)))


def _right(logits: Floats, labels: NDArray[np.int64], classes: NDArray[np.int64], place: NDArray[np.int64]) -> Floats:
    """1 where the class is right, else 0, (N,); where the set lacks classes, its own alone compete."""
    if len(classes) == len(place):
        return image_scores(logits, place[labels]).top1
    return image_scores(logits[:, place[classes]], np.searchsorted(classes, labels)).top1


def _score(name: str, shifted: ShiftedSet, there: Floats, here: Floats) -> ShiftScore:
    return ShiftScore(
        model=name,
        shift=shifted.name,
        corruption=shifted.corruption,
        severity=shifted.severity,
        images=len(there),
        classes=len(shifted.classes),
        top1=bca(there),
        unshifted=bca(here),
        drop=mean_difference(here, there),
    )


def _difference(
    names: tuple[str, str], shift: str, first: tuple[Floats, Floats], second: tuple[Floats, Floats]
) -> ShiftDifference:
    unshifted = paired_difference(first[1], second[1])
    return ShiftDifference(
        models=names,
        shift=shift,
        top1=paired_difference(first[0], second[0]),
        unshifted=unshifted,
        matched=abs(unshifted.difference.value) <= MATCHED,
        beyond=mean_difference(first[0] - second[0], first[1] - second[1]),
    )


def corruption_errors(scores: Sequence[ShiftScore]) -> list[CorruptionError]:
    """Mean errors over corruptions, and mCE with the first model as the reference."""
    there = {score.corruption for score in scores if score.corruption is not None}
    kinds = sorted(there & CORRUPTIONS.keys()) or sorted(there)
    names = list(dict.fromkeys(score.model for score in scores))
    errors = {
        name: np.array(
            [np.mean([1 - s.top1.value for s in scores if (s.model, s.corruption) == (name, kind)]) for kind in kinds]
        )
        for name in names
    }
    first = errors[names[0]] if names else np.zeros(0)
    relative = len(names) > 1 and bool((first > 0).all())
    return [
        CorruptionError(
            name, len(kinds), float(errors[name].mean()), float((errors[name] / first).mean()) if relative else None
        )
        for name in names
        if kinds
    ]
