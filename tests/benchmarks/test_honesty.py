"""How often the statistics are wrong, in small: the simulation of benchmarks/honesty.py on the committed rows."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

MODULE = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "honesty.py"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def most(share: float, repeats: int) -> float:
    """What a share is at most, but for chance in one of a thousand tests."""
    return float(share + 3.1 * np.sqrt(share * (1 - share) / repeats))


@pytest.mark.parametrize("methods", [1, 4])
def test_a_method_is_rarely_better_than_itself(methods: int, rng: np.random.Generator) -> None:
    assert 0 < MODULE["false_verdicts"](600, 6, methods, rng) <= most(0.05, 600)
    assert MODULE["false_verdicts"](20, 5, methods, rng) == 0


def test_looking_after_every_seed_is_rarely_wrong(rng: np.random.Generator) -> None:
    assert 0 < MODULE["false_stops"](300, 1, rng) <= most(0.05, 300)


def test_the_best_method_is_rarely_lost_and_a_margin_rarely_missed(rng: np.random.Generator) -> None:
    assert MODULE["lost_leader"](200, 6, rng) <= most(0.05, 200)
    assert MODULE["false_equivalence"](400, 6, rng) <= most(0.05, 400)


@pytest.mark.parametrize("seeds", [3, 6])
def test_intervals_of_real_runs_cover_what_they_say(seeds: int, rng: np.random.Generator) -> None:
    found = MODULE["coverage"](300, seeds, normal=False, rng=rng)
    lowest = 1 - most(0.06, 300)  # real runs are not quite normal: a point less than 95 %
    assert found["difference, Student"] >= lowest
    assert found["gap, Fieller"] >= lowest
    assert found["gap, percentile"] < lowest  # what the intervals of earlier versions covered
    assert MODULE["labels_coverage"](300, seeds, rng) >= lowest


def test_large_differences_are_found_with_fewer_seeds(rng: np.random.Generator) -> None:
    decided, seeds, fixed = MODULE["looks"](60, 2.0, rng, 10)
    assert decided > 0.9
    assert fixed > 0.9
    assert seeds < 7.5
