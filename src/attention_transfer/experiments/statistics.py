"""Means with intervals, and the share of the scratch-to-fine-tuning gap that a method recovers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean with a 95 % confidence interval; both bounds are NaN if there are too few values for one."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """The ± of a symmetric interval."""
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's t interval; a single seed has no interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    error = float(stats.sem(values))
    if error == 0:
        return Interval(mean, mean, mean)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    return Interval(mean, float(low), float(high))


def gap_share(scratch: Sequence[float], finetune: Sequence[float], method: Sequence[float]) -> Interval:
    """The share of the gap that a method recovers: (method - scratch) / (finetune - scratch).

    A ratio of means over seeds, with a percentile bootstrap interval: 10,000 resamples of whole seeds, since the runs
    of one seed share their labelled images. The three sequences belong to the same seeds, in the same order.

    Returns:
        1 is fine-tuning, 0 is scratch. The interval is NaN with fewer than three seeds; all is NaN if fine-tuning is
        not better than scratch.
    """
    if np.mean(finetune) <= np.mean(scratch):
        return Interval(float("nan"), float("nan"), float("nan"))
    share = _share(np.asarray(scratch), np.asarray(finetune), np.asarray(method))
    if len(method) < 3 or np.array_equal(method, scratch) or np.array_equal(method, finetune):
        return Interval(float(share), float("nan"), float("nan"))
    result = stats.bootstrap(
        (np.asarray(scratch), np.asarray(finetune), np.asarray(method)),
        _share,
        paired=True,
        vectorized=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return Interval(float(share), float(result.confidence_interval.low), float(result.confidence_interval.high))


def _share(
    scratch: NDArray[np.float64], finetune: NDArray[np.float64], method: NDArray[np.float64], axis: int = -1
) -> NDArray[np.float64]:
    floor = scratch.mean(axis=axis)
    return np.asarray((method.mean(axis=axis) - floor) / (finetune.mean(axis=axis) - floor))
