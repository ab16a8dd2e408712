"""Means over images with intervals, and differences between two networks on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from attention_transfer.errors import UserError

Values = Sequence[float] | NDArray[np.float64]

_ELEMENTS = 1 << 22  # of the resamples that are in memory at once


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % confidence interval.

    Attributes:
        value: the mean.
        low: lower bound; `None` where there is no interval: a single value, or values that are all equal.
        high: upper bound; `None` likewise.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PairedDifference:
    """How much higher the mean of one network is than that of another, on the same images.

    Attributes:
        difference: mean of the differences image by image, first minus second, with its BCa interval.
        p: of the two-sided sign-flip test that the differences are symmetric about 0; exact where at most 13 images
            differ, else from 9,999 random flips.
        images: how many there are.
        differing: on how many of them the two networks' values differ.
    """

    difference: Estimate
    p: float
    images: int
    differing: int


def bca(values: Values, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean with a bias-corrected and accelerated bootstrap interval (Efron 1987), 95 %.

    Args:
        values: one an image, finite.
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        UserError: there are no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not len(sample):
        raise UserError("there is nothing to average; give at least one image")
    mean = float(sample.mean())
    if np.ptp(sample) == 0:
        return Estimate(mean, None, None)
    interval = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _ELEMENTS // len(sample)),
        vectorized=True,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))


def mean_difference(a: Values, b: Values, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """How much higher the mean of one sample is than that of another, independent one, with a BCa interval, 95 %.

    Args:
        a: values of the first, finite.
        b: values of the second; not of the same images.
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        UserError: a sample has no values.
    """
    samples = [np.asarray(values, dtype=np.float64) for values in (a, b)]
    if not all(map(len, samples)):
        raise UserError("there is nothing to average; give at least one image of each kind")
    value = float(samples[0].mean() - samples[1].mean())
    if min(map(len, samples)) < 2 or all(np.ptp(sample) == 0 for sample in samples):
        return Estimate(value, None, None)
    interval = stats.bootstrap(
        samples,
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        n_resamples=resamples,
        batch=max(1, _ELEMENTS // max(map(len, samples))),
        vectorized=True,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def paired_difference(a: Values, b: Values, *, resamples: int = 2000, seed: int = 0) -> PairedDifference:
    """Compare two networks by a figure of each image, e.g. 1 where the class is right.

    Args:
        a: values of the first network, one an image.
        b: values of the second, of the same images in the same order.
        resamples: bootstrap samples of the interval.
        seed: of resampling and random flips.

    Raises:
        UserError: the numbers of values differ, or there are none.
    """
    if len(a) != len(b):
        raise UserError(f"the networks have values of {len(a)} and {len(b)} images; run both on the same images")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    # A difference of 0 stays 0 when its sign is flipped.
    differing = differences[differences != 0]
    return PairedDifference(
        difference=bca(differences, resamples=resamples, seed=seed),
        p=_sign_flip(differing, seed) if len(differing) > 1 else 1.0,
        images=len(differences),
        differing=len(differing),
    )


def _sign_flip(differences: NDArray[np.float64], seed: int) -> float:
    result = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        batch=max(1, _ELEMENTS // len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)
