"""Differences between methods, paired over seeds, and what can be said about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

from attention_transfer.errors import UserError
from attention_transfer.experiments.statistics.intervals import NONE, Interval, mean_interval

Values = NDArray[np.float64]
Runs = Mapping[int, float]
"""A method's values by seed."""

Verdict = Literal["better", "worse", "equivalent", "undecided"]

DECIDING_SEEDS = 6
"""Fewer can't decide anything: all signs of five differences agree in 1 of 16 cases by chance, which is above 5 %."""

_EXACT_SEEDS = 13  # all 8,192 flips of one; beyond, as many are drawn
FARTHEST = 1000
"""Numbers of seeds that estimates of how many are needed go up to."""


@dataclass(frozen=True)
class Difference:
    """How much higher a method is than another, over the seeds that both have.

    Attributes:
        interval: mean of the differences seed by seed, with a 95 % interval.
        p: of the exact two-sided sign-flip test of no difference, adjusted for the comparisons made beside it.
        wins: probability that the method is above the other in a further seed with labelled images of its own; ties
            count half. The interval is Clopper and Pearson's, which covers at least 95 %.
        seeds: how many both have.
        margin: differences up to this size count as none; `None` where no margin was stated.
        verdict: "equivalent" where the interval is inside the margin, "better" or "worse" where interval and test
            agree on it, else "undecided"; the latter always with fewer than six seeds.
        more: about how many further seeds would decide if mean and spread stayed as they are; `None` where it is
            decided, or where 1,000 would not.
    """

    interval: Interval
    p: float
    wins: Interval
    seeds: int
    margin: float | None
    verdict: Verdict
    more: int | None


def paired(runs: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Values by seed.

    Raises:
        UserError: a seed is there twice; two runs of one seed are no two samples.
    """
    seeds = [seed for seed, _ in runs]
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise UserError(f"seed {twice[0]} is given twice; give each seed once")
    return dict(runs)


def check_margin(margin: float | None) -> None:
    """Raise a `UserError` for a margin that no difference can be inside."""
    if margin is not None and not margin > 0:
        raise UserError(f"margin is {margin:g}; give the difference that would not matter, above 0, e.g. 0.01")


def judged(method: Runs, other: Runs, margin: float | None = None) -> Difference:
    """Compare two methods; see `against` for several."""
    return against(other, {"method": method}, margin)["method"]


def against(reference: Runs, methods: Mapping[str, Runs], margin: float | None = None) -> dict[str, Difference]:
    """Compare each of some methods with a reference.

    With several methods, p is adjusted by Holm's step-down in its resampling form (Westfall and Young 1993): a
    statistic is held against the largest one of its rivals when whole seeds flip their signs. As in Holm's, all
    verdicts together are wrong in at most 5 % of experiments; p of the smallest stays 1/32 at six seeds, however many
    methods there are.

    Args:
        reference: values of what the others are compared with.
        methods: values of each; differences are over the seeds that it shares with the reference.
        margin: differences up to this size count as none.

    Raises:
        UserError: the margin is not above 0, or a method shares no seed with the reference.
    """
    check_margin(margin)
    for name, runs in methods.items():
        if not runs.keys() & reference.keys():
            raise UserError(f"{name} shares no seed with what it is compared with; run both with the same seeds")
    differences_NM = differences(reference, methods)
    return {
        name: _difference(column[~np.isnan(column)], p, margin, len(methods))
        for name, column, p in zip(methods, differences_NM.T, sign_flip(differences_NM), strict=True)
    }


def leading(methods: Mapping[str, Runs]) -> list[str]:
    """The methods that none is better than: the leading group, by falling mean.

    Each method is compared with all others, with p adjusted as in `against`, so the group holds the truly best method
    with at least 95 % confidence.
    """
    inside = []
    for name, runs in methods.items():
        rivals = {other: theirs for other, theirs in methods.items() if other != name and theirs.keys() & runs.keys()}
        if not any(found.verdict == "better" for found in against(runs, rivals).values()):
            inside.append(name)
    return sorted(inside, key=lambda name: -float(np.mean([*methods[name].values()])))


def differences(reference: Runs, methods: Mapping[str, Runs]) -> Values:
    """Differences (N, M) from a reference, over its seeds N and the methods M; NaN where a method has no such seed."""
    return np.array(
        [
            [runs[seed] - value if seed in runs else NONE for runs in methods.values()]
            for seed, value in reference.items()
        ]
    ).reshape(len(reference), len(methods))


def statistics(sums: Values, differences_NM: Values) -> Values:
    """Sums of differences as |t|'s rank-equal |sum| / sqrt(sum of squares), which flipped signs leave comparable."""
    scale = np.sqrt(np.nansum(differences_NM**2, axis=0))
    return np.abs(sums) / np.where(scale == 0, 1, scale)


def signs_of(seeds: int, exact: int = _EXACT_SEEDS) -> NDArray[np.int8]:
    """Rows of signs (R, seeds), the first all +1: each up to the overall sign; drawn ones beyond so many seeds."""
    if seeds <= exact:
        numbers = np.arange(1 << max(seeds - 1, 0))[:, None]
        return (1 - 2 * (numbers >> np.arange(seeds) & 1)).astype(np.int8)
    drawn = np.random.default_rng(0).integers(0, 2, (1 << (exact - 1), seeds), dtype=np.int8)
    drawn[0] = 0
    return 1 - 2 * drawn


def sign_flip(differences_NM: Values) -> list[float]:
    """P of each column of differences (N, M): two-sided, of whole seeds that flip, adjusted over the columns.

    A seed that a column lacks adds nothing to it.
    """
    signs = signs_of(len(differences_NM)).astype(np.float64)
    flipped_RM = statistics(signs @ np.nan_to_num(differences_NM), differences_NM)
    own_M = flipped_RM[0]
    adjusted, worst = np.zeros(len(own_M)), 0.0
    rest = list(np.argsort(-own_M))
    for column in tuple(rest):
        p = float(np.mean(flipped_RM[:, rest].max(axis=1) >= own_M[column] * (1 - 1e-9)))
        adjusted[column] = worst = max(worst, p)
        rest.remove(column)
    return [float(p) for p in adjusted]


def _difference(values: Values, p: float, margin: float | None, comparisons: int) -> Difference:
    interval = mean_interval(list(values))
    verdict = decided(interval, len(values), margin, rejected=p < 0.05)
    needed = None
    if verdict == "undecided" and len(values) > 1:
        seeds = np.arange(max(len(values) + 1, DECIDING_SEEDS), FARTHEST)
        needed = seeds_needed(values, margin, seeds, _factors(comparisons)[seeds])
    more = None if needed is None else needed - len(values)
    return Difference(interval, p, _wins(values), len(values), margin, verdict, more)


def decided(interval: Interval, seeds: int, margin: float | None, *, rejected: bool) -> Verdict:
    """The verdict from the interval, and from whether the test rejects that there is no difference."""
    if seeds < DECIDING_SEEDS:
        return "undecided"
    if margin is not None and -margin < interval.low and interval.high < margin:
        return "equivalent"
    if rejected and (interval.low > 0 or interval.high < 0):
        return "better" if interval.low > 0 else "worse"
    return "undecided"


def seeds_needed(values: Values, margin: float | None, seeds: NDArray[np.int_], factors: Values) -> int | None:
    """The first number of seeds that would decide, if mean and spread stayed as they are.

    Args:
        values: the differences so far.
        margin: of equivalence.
        seeds: numbers to consider, rising.
        factors: for each, how many standard errors an interval's half is.
    """
    mean, halves = abs(values.mean()), factors * values.std(ddof=1) / np.sqrt(seeds)
    enough = mean > halves
    if margin is not None:
        enough |= mean + halves < margin
    return int(seeds[enough.argmax()]) if enough.any() else None


@cache
def _factors(comparisons: int) -> Values:
    """How many standard errors a difference must be to decide one of so many comparisons, by the number of seeds."""
    freedom = np.maximum(np.arange(FARTHEST) - 1, 1)
    return np.asarray(stdtrit(freedom, 1 - 0.025 / comparisons))


def _wins(values: Values) -> Interval:
    count, won = len(values), float((values > 0).sum() + (values == 0).sum() / 2)
    low = float(betaincinv(won, count - won + 1, 0.025)) if won > 0 else 0.0
    high = float(betaincinv(won + 1, count - won, 0.975)) if won < count else 1.0
    return Interval(won / count, low, high)
