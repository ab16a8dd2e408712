"""Comparisons that are looked at after every seed, and may be wrong in 5 % of cases all looks together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from attention_transfer.errors import UserError
from attention_transfer.experiments.statistics.differences import (
    DECIDING_SEEDS,
    FARTHEST,
    Runs,
    Values,
    Verdict,
    check_margin,
    decided,
    differences,
    seeds_needed,
    signs_of,
    statistics,
)
from attention_transfer.experiments.statistics.intervals import Interval

MOST_SEEDS = 50
"""The largest budget of seeds that the looks can be planned for."""

_LEVEL = 0.05
_PATHS = 40_000  # of simulated t statistics, from which the interval's factors are
_EXACT_SEEDS = 16  # budgets up to which every pattern of signs is looked at


@dataclass(frozen=True)
class Sequential:
    """A comparison that was looked at after every seed from the sixth on.

    Attributes:
        interval: mean difference with an always-valid 95 % interval: those of all looks together miss the true
            difference in at most 5 % of experiments. Without bounds before the first look.
        seeds: how many the comparison was decided with, or has so far.
        margin: differences up to this size count as none; `None` where no margin was stated.
        verdict: as in `Difference`; once decided it stays.
        more: about how many further seeds would decide if mean and spread stayed as they are, which may be beyond the
            budget; `None` where it is decided, or where 1,000 would not.
    """

    interval: Interval
    seeds: int
    margin: float | None
    verdict: Verdict
    more: int | None


def until_sure(
    reference: Runs, methods: Mapping[str, Runs], *, max_seeds: int, margin: float | None = None
) -> dict[str, Sequential]:
    """Compare each of some methods with a reference, as often as a seed is added.

    A group-sequential design with a look at every seed from the sixth to the last of the budget, over which 5 % are
    spent (Lan and DeMets 1983). The test is the exact sign-flip test, of which the
    patterns of signs that would have been decided earlier are taken out; over several methods it is of their largest
    statistic. The interval is Student's with wider factors (Jennison and Turnbull 1989). A method is better or worse
    where both say so.

    Args:
        reference: values of what the others are compared with, in the order in which the seeds were run.
        methods: values of each, of the first seeds of the reference; one that is decided needs no further ones. Which
            methods there are, and the budget, must stay as they were at the first look.
        max_seeds: the budget.
        margin: differences up to this size count as none.

    Raises:
        UserError: the budget is out of range or exceeded, or the margin is not above 0.
    """
    check_margin(margin)
    if not DECIDING_SEEDS <= max_seeds <= MOST_SEEDS:
        raise UserError(
            f"max_seeds is {max_seeds}; give {DECIDING_SEEDS} to {MOST_SEEDS}: fewer than six seeds can't decide"
        )
    if len(reference) > max_seeds:
        raise UserError(f"there are {len(reference)} seeds and max_seeds is {max_seeds}; a budget can't be lowered")
    all_NM = differences(reference, methods)
    crossed_M, factors = _crossings(all_NM, max_seeds), _factors(max_seeds)
    return {
        name: _looked_at(column[~np.isnan(column)], crossed, factors, margin)
        for name, column, crossed in zip(methods, all_NM.T, crossed_M, strict=True)
    }


def _looked_at(values: Values, crossed: int | None, factors: Values, margin: float | None) -> Sequential:
    """The first look that decides, or the last one."""
    interval = Interval(float(values.mean()) if len(values) else float("nan"), -np.inf, np.inf)
    for seeds in range(DECIDING_SEEDS, len(values) + 1):
        interval = _interval(values[:seeds], factors)
        verdict = decided(interval, seeds, margin, rejected=crossed is not None and crossed <= seeds)
        if verdict != "undecided":
            return Sequential(interval, seeds, margin, verdict, None)
    return Sequential(interval, len(values), margin, "undecided", _more(values, factors, margin))


def _interval(values: Values, factors: Values) -> Interval:
    mean = float(values.mean())
    half = float(factors[len(values) - DECIDING_SEEDS] * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def _more(values: Values, factors: Values, margin: float | None) -> int | None:
    if len(values) < 2:
        return None
    seeds = np.arange(max(len(values) + 1, DECIDING_SEEDS), FARTHEST)
    known = np.minimum(seeds - DECIDING_SEEDS, len(factors) - 1)
    needed = seeds_needed(values, margin, seeds, factors[known])
    return None if needed is None else needed - len(values)


def spent(max_seeds: int) -> Values:
    """How much of the 5 % is spent by each look, from the sixth seed to the last.

    1/32 at the first, the least at which six seeds can be told from chance, the rest evenly: large differences are
    decided with six seeds whatever the budget is.
    """
    return np.linspace(1 / 32, _LEVEL, max_seeds - DECIDING_SEEDS + 1)


def thresholds(paths_RL: Values, spent_L: Values) -> list[float]:
    """Bounds for the looks L of a statistic whose paths R are equally likely.

    Of all paths, at most the share `spent_L` has been above a bound by each look.
    """
    alive, bounds = np.ones(len(paths_RL), dtype=bool), []
    for path_R, share in zip(paths_RL.T, spent_L, strict=True):
        allowed = int(share * len(path_R) + 1e-9) - int((~alive).sum())
        left = np.sort(path_R[alive])[::-1]
        # Above the first value that may not cross; ties cross together or not at all.
        bound = left[allowed] * (1 + 1e-9) if allowed < len(left) else -np.inf
        alive &= path_R <= bound
        bounds.append(float(bound))
    return bounds


def _crossings(differences_NM: Values, max_seeds: int) -> list[int | None]:
    """For each column the number of seeds at which the sign-flip test rejects, if it does."""
    seeds = len(differences_NM)
    looks = range(DECIDING_SEEDS, seeds + 1)
    if not looks:
        return [None] * differences_NM.shape[1]
    # The same patterns at every look, so that what was decided stays decided.
    signs = signs_of(max_seeds, _EXACT_SEEDS)[:, :seeds].astype(np.float64)
    filled = np.nan_to_num(differences_NM)
    by_look = [statistics(signs[:, :n] @ filled[:n], filled[:n]) for n in looks]
    paths_RL = np.stack([values_RM.max(axis=1) for values_RM in by_look], axis=1)
    bounds = thresholds(paths_RL, spent(max_seeds)[: len(looks)])
    crossed_LM = np.array([values_RM[0] > bound for values_RM, bound in zip(by_look, bounds, strict=True)])
    return [looks[int(column.argmax())] if column.any() else None for column in crossed_LM.T]


@cache
def _factors(max_seeds: int) -> NDArray[np.float64]:
    """How many standard errors half an always-valid interval is, for 6, 7, … seeds; from simulated normal runs."""
    runs = np.random.default_rng(0).standard_normal((_PATHS, max_seeds))
    counts = np.arange(1, max_seeds + 1)
    means = runs.cumsum(axis=1) / counts
    squares = (runs**2).cumsum(axis=1) - counts * means**2
    t = np.abs(means[:, 1:]) / np.sqrt(squares[:, 1:] / counts[:-1] / counts[1:])
    return np.array(thresholds(t[:, DECIDING_SEEDS - 2 :], spent(max_seeds)))
