"""Intervals over seeds that cover at few of them: Student's for means, Fieller's for the gap that is recovered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # quantiles of Student's t, a hundred times quicker than stats.t.ppf

NONE = float("nan")


@dataclass(frozen=True)
class Interval:
    """An estimate with a 95 % confidence interval.

    Attributes:
        mean: the estimate.
        low: lower bound; NaN where there is no interval, -inf where it has no bound.
        high: upper bound; NaN or inf likewise.
    """

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
        return Interval(mean, NONE, NONE)
    half = float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def gap_recovered(scratch: Sequence[float], finetune: Sequence[float], method: Sequence[float]) -> Interval:
    """The gap that a method recovers: (method - scratch) / (finetune - scratch), a ratio of means over seeds.

    The interval is Fieller's (1954) for the ratio of paired means: all ratios r for which a t test over seeds does not
    tell method - scratch from r (finetune - scratch). Where fine-tuning is not clearly above scratch, every ratio may
    be among them, and the interval has no bounds.

    Args:
        scratch: values of a method that has nothing from the teacher, one a seed.
        finetune: values of the fine-tuned, of the same seeds in the same order.
        method: those of the method.

    Returns:
        1 is fine-tuning, 0 is scratch, both without an interval, as is a single seed. All is NaN if fine-tuning is not
        better than scratch.
    """
    floor, top, own = (np.asarray(values, dtype=np.float64) for values in (scratch, finetune, method))
    gain, gap = own - floor, top - floor
    if gap.mean() <= 0:
        return Interval(NONE, NONE, NONE)
    ratio = float(gain.mean() / gap.mean())
    seeds = len(gap)
    if seeds < 2 or np.array_equal(own, floor) or np.array_equal(own, top):
        return Interval(ratio, NONE, NONE)
    # r is inside where r² a - 2 r b + c <= 0: the squared mean of gain - r gap is at most t² times its squared error.
    error = stdtrit(seeds - 1, 0.975) ** 2 / seeds * np.cov(gap, gain)
    a = gap.mean() ** 2 - error[0, 0]
    b = gap.mean() * gain.mean() - error[0, 1]
    c = gain.mean() ** 2 - error[1, 1]
    if a <= 0:
        return Interval(ratio, -np.inf, np.inf)
    spread = float(np.sqrt(max(b**2 - a * c, 0.0)))
    return Interval(ratio, float((b - spread) / a), float((b + spread) / a))
