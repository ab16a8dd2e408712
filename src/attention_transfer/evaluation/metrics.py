"""Figures of a classifier from its logits: accuracy, calibration and confusion.

Shapes: N images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from attention_transfer.errors import UserError
from attention_transfer.evaluation.intervals import Estimate, bca

BINS = 15

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class ReliabilityBin:
    """Images whose confidence lies above `low` and at most at `high`.

    Attributes:
        low: lower bound.
        high: upper bound.
        images: how many there are.
        confidence: mean probability of their predicted class; `None` where there are none.
        accuracy: share that is predicted right; `None` where there are none.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class ImageScores:
    """Figures of each image, (N,): what intervals, and paired comparisons of two networks, are made of.

    Attributes:
        top1: 1 where the most probable class is right, else 0.
        top5: 1 where the right class is among the five most probable; `None` with five classes or fewer.
        nll: negative logarithm of the right class's probability, in nats.
        brier: squared distance of the probabilities from the right class's indicator, in [0, 2].
    """

    top1: Floats
    top5: Floats | None
    nll: Floats
    brier: Floats


@dataclass(frozen=True)
class ClassificationScores:
    """How good a classifier is.

    Attributes:
        images: how many images there are.
        top1: accuracy, in [0, 1]; like the next three with a BCa interval over images.
        top5: accuracy of the five most probable classes; `None` with five classes or fewer.
        nll: negative log-likelihood, in nats.
        brier: Brier score, summed over classes, in [0, 2].
        per_class: accuracy of each class; `None` for one without images.
        mean_per_class: their mean, over classes with images.
        ece: expected calibration error: how far confidence is from accuracy, mean over images, by bins of equal width.
        reliability: the bins, from the least confident.
        confusion: how often each class (row) was taken for each (column).
    """

    images: int
    top1: Estimate
    top5: Estimate | None
    nll: Estimate
    brier: Estimate
    per_class: tuple[float | None, ...]
    mean_per_class: float
    ece: float
    reliability: tuple[ReliabilityBin, ...]
    confusion: tuple[tuple[int, ...], ...]


def image_scores(logits: ArrayLike, labels: ArrayLike) -> ImageScores:
    """Figures of each image.

    Args:
        logits: (N, C), of any floating type; logarithms of probabilities are logits.
        labels: right classes, (N,).

    Raises:
        UserError: the shapes do not fit, a label is no class, or a logit is not finite.
    """
    log_p, truth = _checked(logits, labels)
    here = np.arange(len(truth))
    order = np.argsort(-log_p, axis=1, kind="stable")  # of equal logits the first class wins, as for argmax
    right = order == truth[:, None]
    p = np.exp(log_p)
    return ImageScores(
        top1=right[:, 0].astype(np.float64),
        top5=right[:, :5].any(axis=1).astype(np.float64) if log_p.shape[1] > 5 else None,
        nll=-log_p[here, truth],
        brier=np.square(p).sum(axis=1) - 2 * p[here, truth] + 1,
    )


def classification(
    logits: ArrayLike, labels: ArrayLike, *, bins: int = BINS, resamples: int = 2000, seed: int = 0
) -> ClassificationScores:
    """All figures of a classifier.

    Args:
        logits: (N, C), of any floating type; logarithms of probabilities are logits.
        labels: right classes, (N,).
        bins: bins of equal width for calibration.
        resamples: bootstrap samples of the intervals.
        seed: of the resampling.

    Raises:
        UserError: as `image_scores`, or there are no images.
    """
    log_p, truth = _checked(logits, labels)
    each = image_scores(logits, labels)
    predicted, classes = log_p.argmax(axis=1), log_p.shape[1]
    confusion = np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)
    counts = confusion.sum(axis=1)
    per_class = tuple(float(confusion[c, c] / n) if n else None for c, n in enumerate(counts))

    def estimate(values: Floats) -> Estimate:
        return bca(values, resamples=resamples, seed=seed)

    table = reliability(np.exp(log_p.max(axis=1)), each.top1, bins=bins)
    return ClassificationScores(
        images=len(truth),
        top1=estimate(each.top1),
        top5=None if each.top5 is None else estimate(each.top5),
        nll=estimate(each.nll),
        brier=estimate(each.brier),
        per_class=per_class,
        mean_per_class=float(np.mean([accuracy for accuracy in per_class if accuracy is not None])),
        ece=calibration_error(table),
        reliability=table,
        confusion=tuple(tuple(map(int, row)) for row in confusion),
    )


def reliability(confidence: Floats, correct: Floats, *, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """Confidence and accuracy in bins of equal width over [0, 1]; a confidence of 1 is in the last of them.

    torchmetrics has a bin more, for a confidence of exactly 1 (issue 3510).

    Args:
        confidence: probability of the predicted class, (N,).
        correct: 1 where it is right, else 0, (N,).
        bins: how many.
    """
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    sums = (np.bincount(which, weights=values, minlength=bins) for values in (confidence, correct))
    means = [[float(s / n) if n else None for s, n in zip(each, counts, strict=True)] for each in sums]
    return tuple(
        ReliabilityBin(float(low), float(high), int(n), mean, accuracy)
        for low, high, n, mean, accuracy in zip(edges[:-1], edges[1:], counts, *means, strict=True)
    )


def calibration_error(table: tuple[ReliabilityBin, ...]) -> float:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017), in [0, 1]."""
    images = sum(each.images for each in table)
    gaps = (
        each.images * abs(each.accuracy - each.confidence)
        for each in table
        if each.accuracy is not None and each.confidence is not None
    )
    return sum(gaps) / images


def _checked(logits: ArrayLike, labels: ArrayLike) -> tuple[Floats, Labels]:
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if scores.ndim != 2 or truth.shape != scores.shape[:1] or not len(truth):
        raise UserError(
            f"logits are {scores.shape} and labels {truth.shape}; give (images, classes) and (images,), of one image "
            "or more"
        )
    if truth.min() < 0 or truth.max() >= scores.shape[1]:
        raise UserError(f"labels go from {truth.min()} to {truth.max()}, but there are {scores.shape[1]} classes")
    if np.isnan(scores).any() or np.isposinf(scores).any() or np.isneginf(scores).all(axis=1).any():
        raise UserError("logits are not finite; check the network, or its precision")
    return np.asarray(log_softmax(scores, axis=1), dtype=np.float64), truth
