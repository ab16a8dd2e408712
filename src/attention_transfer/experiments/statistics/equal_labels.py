"""With how many labels one method is as good as another with fewer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from attention_transfer.errors import UserError
from attention_transfer.experiments.statistics.differences import Runs
from attention_transfer.experiments.statistics.intervals import NONE, Interval

_STEPS = 2001  # of the logarithmic axis of labels


@dataclass(frozen=True)
class EqualLabels:
    """The amount of labels with which a reference is as good as a method with its own.

    Attributes:
        amount: labels that the reference needs, in the unit of its curve, with a 95 % interval. The estimate is inf
            where it is below the method at its largest amount, -inf where it is above it at its smallest; a bound is
            infinite where the curve ends before it.
        seeds: how many all of the runs share.
        fewest: smallest amount of the reference's curve.
        most: largest one.
    """

    amount: Interval
    seeds: int
    fewest: float
    most: float


def equal_labels(method: Runs, reference: Mapping[float, Runs]) -> EqualLabels:
    """Find the amount of labels with which a reference is as good as a method.

    Between its amounts, the curve of each seed is linear in the logarithm of the labels. The estimate is the fewest
    labels at which the reference's mean reaches the method's. The interval is of all amounts at which a t test over
    seeds, of the method less the reference's curve, does not tell the two apart.

    Args:
        method: values of the method with its labels.
        reference: values of the reference, by amount of labels.

    Raises:
        UserError: the reference has fewer than two amounts, or there is no seed that all share.
    """
    amounts = sorted(reference)
    if len(amounts) < 2:
        raise UserError("a curve over labels needs two amounts of labels or more; add some with --shots or --fractions")
    seeds = sorted(set(method).intersection(*reference.values()))
    if not seeds:
        raise UserError("no seed was run with every amount of labels; run all amounts with the same seeds")
    log_amounts = np.log(amounts)
    grid = np.linspace(log_amounts[0], log_amounts[-1], _STEPS)
    ahead_SX = np.array(
        [method[seed] - np.interp(grid, log_amounts, [reference[n][seed] for n in amounts]) for seed in seeds]
    )
    mean = ahead_SX.mean(axis=0)
    reached = mean <= 0
    estimate = np.inf if not reached.any() else float(np.exp(grid[reached.argmax()]))
    if reached[0] and mean[0] < 0:
        estimate = -np.inf
    low, high = NONE, NONE
    if len(seeds) > 1:
        half = stdtrit(len(seeds) - 1, 0.975) * ahead_SX.std(axis=0, ddof=1) / np.sqrt(len(seeds))
        like = np.flatnonzero(np.abs(mean) <= half)
        # With none alike, the method is above or below the whole curve; a curve that jumps has its estimate alone.
        low, high = np.exp(grid[like[[0, -1]]]) if len(like) else (estimate, estimate)
        low = -np.inf if (like[:1] == 0).any() else amounts[-1] if low == np.inf else low
        high = np.inf if (like[-1:] == _STEPS - 1).any() else amounts[0] if high == -np.inf else high
    return EqualLabels(Interval(estimate, float(low), float(high)), len(seeds), amounts[0], amounts[-1])
