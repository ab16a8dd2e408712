"""How often the statistics are wrong: comparisons of a method with itself, and the coverage of intervals.

    python -m benchmarks.honesty                  the tables of docs/statistics.md, within some minutes
    python -m benchmarks.honesty --repeats 200    roughly

Runs are simulated from committed rows: a setting and methods are drawn, then seeds with replacement from those that
were really run, whole, so that what methods share stays shared; smoothed by normal noise of the same covariance
(Silverman and Young 1987), so that five seeds do not make five values.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from csv import DictReader
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from attention_transfer.experiments.statistics import (
    against,
    equal_labels,
    gap_recovered,
    judged,
    leading,
    mean_interval,
    until_sure,
)

SEEDS = (3, 5, 6, 10)
BUDGET = 12
Bootstrap = Literal["BCa", "percentile"]
BOOTSTRAPS: tuple[Bootstrap, ...] = ("BCa", "percentile")
_RESULTS = Path(__file__).parent / "results"
_ROWS = (
    "digits-2026-11-21/5shot.csv",
    "digits-2026-11-21/15pct.csv",
    "methods-2026-11-21/5shot.csv",
    "methods-2026-11-21/15shot.csv",
    "claims-2026-11-27/scenes-5-labels/results.csv",
    "claims-2026-11-27/scenes-20-labels/results.csv",
)
Values = NDArray[np.float64]


class Setting:
    """The accuracies of one committed comparison.

    Attributes:
        names: the methods.
        means: accuracy of each, mean over seeds.
        errors_SM: what each seed is off the mean, scaled so that their variance is the unbiased one.
    """

    def __init__(self, path: Path) -> None:
        found: dict[str, dict[str, float]] = {}
        with path.open(newline="") as file:
            for row in DictReader(file):
                found.setdefault(row["preset"], {})[row["seed"]] = float(row["test_accuracy"])
        seeds = sorted(set.intersection(*(set(runs) for runs in found.values())))
        values_SM = np.array([[runs[seed] for runs in found.values()] for seed in seeds])
        self.names = list(found)
        self.means = values_SM.mean(axis=0)
        self.errors_SM = (values_SM - self.means) * np.sqrt(len(seeds) / (len(seeds) - 1))

    def draw(self, seeds: int, columns: list[int], rng: np.random.Generator) -> Values:
        """Errors (seeds, columns) of new seeds."""
        pool = self.errors_SM[:, columns]
        width = (4 / (3 * len(pool))) ** 0.2
        noise = rng.standard_normal((seeds, len(pool))) @ pool / np.sqrt(len(pool))
        return np.asarray((pool[rng.integers(len(pool), size=seeds)] + width * noise) / np.sqrt(1 + width**2))


@cache
def settings() -> list[Setting]:
    """The committed comparisons of several seeds."""
    return [Setting(_RESULTS / path) for path in _ROWS]


def triples(rng: np.random.Generator, repeats: int, seeds: int, *, normal: bool) -> Iterator[tuple[Values, Values]]:
    """Means (3) and values (seeds, 3) of scratch, fine-tuning and another method, as often as is asked for."""
    known = settings()
    for _ in range(repeats):
        setting = known[0] if normal else known[rng.integers(len(known))]
        floor, top = setting.names.index("scratch"), setting.names.index("finetune")
        others = [i for i in range(len(setting.names)) if i not in (floor, top)]
        columns = [floor, top, int(rng.choice(others))]
        if normal:
            pool = setting.errors_SM[:, columns]
            errors = rng.standard_normal((seeds, len(pool))) @ pool / np.sqrt(len(pool))
        else:
            errors = setting.draw(seeds, columns, rng)
        yield setting.means[columns], setting.means[columns] + errors


def coverage(repeats: int, seeds: int, *, normal: bool, rng: np.random.Generator) -> dict[str, float]:
    """Shares of intervals that hold the truth: ours, and bootstraps of 2,000 resamples beside them."""
    drawn = [*triples(rng, repeats, seeds, normal=normal)]
    truth_RM = np.array([means for means, _ in drawn])
    values_MRS = np.moveaxis(np.array([values for _, values in drawn]), -1, 0)
    floor, top, method = values_MRS
    difference, gap = (
        truth_RM[:, 2] - truth_RM[:, 1],
        (truth_RM[:, 2] - truth_RM[:, 0]) / (truth_RM[:, 1] - truth_RM[:, 0]),
    )
    ours = [mean_interval(list(row)) for row in method - top]
    gaps = [gap_recovered(*map(list, rows)) for rows in zip(floor, top, method, strict=True)]
    found = {
        "difference, Student": np.mean([i.low <= true <= i.high for i, true in zip(ours, difference, strict=True)]),
        "gap, Fieller": np.mean([i.low <= true <= i.high for i, true in zip(gaps, gap, strict=True)]),
        "gap, without bounds": np.mean([np.isinf(i.low) for i in gaps]),
    }
    for name in BOOTSTRAPS:
        found[f"difference, {name}"] = _bootstrapped((method - top,), np.mean, name, difference)
        found[f"gap, {name}"] = _bootstrapped((floor, top, method), _gap, name, gap)
    return {name: float(value) for name, value in found.items()}


def _bootstrapped(
    samples: tuple[Values, ...], statistic: Callable[..., Values], method: Bootstrap, truth: Values
) -> float:
    interval = stats.bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        axis=-1,
        n_resamples=2000,
        batch=100,
        method=method,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(np.mean((interval.low <= truth) & (truth <= interval.high)))


def _gap(floor: Values, top: Values, method: Values, axis: int = -1) -> Values:
    low = floor.mean(axis=axis)
    return np.asarray((method.mean(axis=axis) - low) / (top.mean(axis=axis) - low))


def false_verdicts(repeats: int, seeds: int, methods: int, rng: np.random.Generator, *, skewed: bool = False) -> float:
    """Share of comparisons of a method with itself, under so many other names, that say "better" or "worse"."""
    wrong = 0
    for _ in range(repeats):
        reference, named = alike(seeds, methods, rng, skewed=skewed)
        wrong += any(found.verdict != "undecided" for found in against(reference, named).values())
    return wrong / repeats


def alike(
    seeds: int, methods: int, rng: np.random.Generator, *, skewed: bool = False
) -> tuple[dict[int, float], dict[str, dict[int, float]]]:
    """Runs of one real method, drawn apart for a reference and each of so many names; or of exponential errors."""
    if skewed:
        values = rng.exponential(0.02, (methods + 1, seeds))
    else:
        known = settings()
        setting = known[rng.integers(len(known))]
        column = [int(rng.integers(len(setting.names)))]
        values = np.array([setting.draw(seeds, column, rng)[:, 0] for _ in range(methods + 1)])
    named = {f"method {i}": dict(enumerate(map(float, row))) for i, row in enumerate(values)}
    return named.pop("method 0"), named


def false_stops(repeats: int, methods: int, rng: np.random.Generator, budget: int = BUDGET) -> float:
    """The same, looked at after every seed up to the budget."""
    wrong = 0
    for _ in range(repeats):
        reference, named = alike(budget, methods, rng)
        found = until_sure(reference, named, max_seeds=budget)
        wrong += any(one.verdict != "undecided" for one in found.values())
    return wrong / repeats


def false_equivalence(repeats: int, seeds: int, rng: np.random.Generator) -> float:
    """Share of comparisons of methods that differ by just the margin of one standard deviation, said to be alike."""
    nothing = dict.fromkeys(range(seeds), 0.0)
    found = (judged(dict(enumerate(rng.normal(1, 1, seeds))), nothing, 1.0) for _ in range(repeats))
    return float(np.mean([one.verdict == "equivalent" for one in found]))


def lost_leader(repeats: int, seeds: int, rng: np.random.Generator) -> float:
    """How often the truly best of five methods, by a hair, is not in the leading group."""
    lost = 0
    for _ in range(repeats):
        best, others = alike(seeds, 4, rng)
        lost += "best" not in leading({"best": best, **others})
    return lost / repeats


def labels_coverage(repeats: int, seeds: int, rng: np.random.Generator) -> float:
    """Share of intervals of equal labels that hold the truth: a curve that is linear in log labels, normal errors."""
    hits, amounts = 0, (5.0, 10.0, 20.0, 40.0)
    for _ in range(repeats):
        shared = rng.normal(0, 0.02, seeds)
        curve = {n: dict(enumerate(0.5 + 0.1 * np.log2(n / 5) + shared + rng.normal(0, 0.02, seeds))) for n in amounts}
        method = dict(enumerate(0.5 + 0.1 * np.log2(14 / 5) + shared + rng.normal(0, 0.02, seeds)))
        found = equal_labels(method, curve).amount
        hits += found.low <= 14 <= found.high
    return hits / repeats


def looks(repeats: int, effect: float, rng: np.random.Generator, budget: int) -> tuple[float, float, float]:
    """For a true difference in standard deviations: share decided and mean seeds by looking, share by all seeds."""
    nothing = dict.fromkeys(range(budget), 0.0)
    decided, used, fixed = [], [], []
    for _ in range(repeats):
        runs = dict(enumerate(rng.normal(effect, 1, budget)))
        one = until_sure(nothing, {"method": runs}, max_seeds=budget)["method"]
        decided.append(one.verdict != "undecided")
        used.append(one.seeds)
        fixed.append(judged(runs, nothing).verdict != "undecided")
    return float(np.mean(decided)), float(np.mean(used)), float(np.mean(fixed))


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    repeats = parser.parse_args().repeats
    for number, normal in enumerate((False, True)):
        rng = np.random.default_rng(number)  # each table by itself is the same again
        by_seeds = [coverage(repeats, seeds, normal=normal, rng=rng) for seeds in SEEDS]
        _table("coverage, normal runs of the digits' spread" if normal else "coverage, real runs", SEEDS, by_seeds)
    rng = np.random.default_rng(2)
    wrong = [
        {
            "a method with itself": false_verdicts(repeats, seeds, 1, rng),
            "with itself under four names, any": false_verdicts(repeats, seeds, 4, rng),
            "the same, exponential errors": false_verdicts(repeats, seeds, 4, rng, skewed=True),
            "the best of five is not in the leading group": lost_leader(repeats, seeds, rng),
            "said to be as good, differs by the margin": false_equivalence(repeats, seeds, rng),
        }
        for seeds in SEEDS
    ]
    _table("false verdicts, by seeds", SEEDS, wrong)
    _table("coverage of equal labels, by seeds", SEEDS, [{"interval": labels_coverage(repeats, s, rng)} for s in SEEDS])
    names, rng = (1, 4), np.random.default_rng(3)
    _table(
        f"false decisions, looked at after every seed up to {BUDGET}; by number of methods",
        names,
        [{"any": false_stops(repeats, methods, rng)} for methods in names],
    )
    print("\n| true difference, deviations | decided by looking | seeds | by ten seeds |\n|---|---:|---:|---:|")
    rng = np.random.default_rng(4)
    for effect in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
        decided, used, fixed = looks(repeats, effect, rng, 10)
        print(f"| {effect} | {100 * decided:.0f} % | {used:.1f} | {100 * fixed:.0f} % |", flush=True)


def _table(title: str, columns: tuple[int, ...], values: list[dict[str, float]]) -> None:
    print(f"\n| {title} | " + " | ".join(map(str, columns)) + " |\n|---|" + "---:|" * len(columns))
    for name in values[0]:
        print(f"| {name} | " + " | ".join(f"{100 * one[name]:.1f} %" for one in values) + " |", flush=True)


if __name__ == "__main__":
    main()
