"""Intervals, tests and verdicts, against hand-worked cases, other libraries' answers and simulations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from attention_transfer import UserError
from attention_transfer.experiments.statistics import (
    Difference,
    against,
    equal_labels,
    equal_labels_text,
    gap_recovered,
    judged,
    leading,
    leading_text,
    mean_interval,
    paired,
    sentence,
    until_sure,
)
from attention_transfer.experiments.statistics.sequential import spent, thresholds

CLEAR = [0.021, 0.034, 0.012, 0.027, 0.019, 0.025]
UNCLEAR = [0.02, -0.03, 0.01, -0.02, 0.03, 0.01]


def runs(values: list[float], base: float = 0.7) -> dict[int, float]:
    return {seed: base + value for seed, value in enumerate(values)}


def zero(seeds: int) -> dict[int, float]:
    return runs([0.0] * seeds)


def sign_flip(values: list[float]) -> float:
    """Exact, two-sided, by hand."""
    flips = [abs(np.mean(np.multiply(values, signs))) for signs in itertools.product((-1, 1), repeat=len(values))]
    return float(np.mean([flip >= abs(np.mean(values)) - 1e-12 for flip in flips]))


def test_the_interval_is_students_t() -> None:
    # Mean 2, standard error 1/sqrt(3), t(0.975, 2 degrees of freedom) = 4.3027 from any table.
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean_interval([0.5, 0.5]).half_width == 0.0


def test_a_single_seed_has_no_interval() -> None:
    interval = mean_interval([0.5])
    assert interval.mean == 0.5
    assert math.isnan(interval.low)


def test_the_gap_recovered_is_the_ratio_of_mean_gains() -> None:
    gap = gap_recovered([0.4, 0.5, 0.6], [0.8, 0.9, 1.0], [0.7, 0.8, 0.9])
    # Every seed has the same ratio, so it is known exactly.
    assert (gap.mean, gap.low, gap.high) == pytest.approx((0.75, 0.75, 0.75))


def test_the_gaps_interval_has_the_ratios_that_a_t_test_does_not_reject() -> None:
    scratch, finetune = np.array([0.40, 0.50, 0.45, 0.55]), np.array([0.80, 0.95, 0.85, 0.90])
    method = np.array([0.70, 0.75, 0.80, 0.72])
    gap = gap_recovered(list(scratch), list(finetune), list(method))
    assert gap.low < gap.mean < gap.high
    for bound in (gap.low, gap.high):
        test = stats.ttest_1samp(method - scratch - bound * (finetune - scratch), 0)
        assert test.pvalue == pytest.approx(0.05, abs=1e-9)


def test_a_gap_that_may_be_none_has_no_bounds() -> None:
    gap = gap_recovered([0.4, 0.5, 0.6], [0.7, 0.5, 0.6], [0.5, 0.5, 0.61])
    assert (gap.low, gap.high) == (-math.inf, math.inf)


def test_the_ends_of_the_scale_are_exact() -> None:
    scratch, finetune = [0.4, 0.5, 0.6], [0.8, 0.9, 0.7]
    assert gap_recovered(scratch, finetune, scratch).mean == 0.0
    assert gap_recovered(scratch, finetune, finetune).mean == 1.0


def test_there_is_no_gap_where_fine_tuning_gains_nothing() -> None:
    assert math.isnan(gap_recovered([0.5, 0.6], [0.5, 0.5], [0.9, 0.9]).mean)


@pytest.mark.parametrize("values", [CLEAR, UNCLEAR, CLEAR[:3], [0.0] * 6, [*CLEAR, *UNCLEAR]])
def test_the_test_is_the_exact_sign_flip_test(values: list[float]) -> None:
    assert judged(runs(values), zero(len(values))).p == pytest.approx(sign_flip(values), abs=1e-9)


@pytest.mark.parametrize(
    ("values", "margin", "verdict"),
    [
        (CLEAR, None, "better"),
        ([-value for value in CLEAR], None, "worse"),
        (CLEAR[:5], None, "undecided"),  # p can't be below 1/16
        ([value + 0.5 for value in CLEAR[:5]], None, "undecided"),
        (UNCLEAR, None, "undecided"),
        (UNCLEAR, 0.05, "equivalent"),
        (UNCLEAR, 0.02, "undecided"),
        (CLEAR, 0.05, "equivalent"),  # the margin says that no such difference matters
        (UNCLEAR[:5], 0.5, "undecided"),
        ([0.0] * 6, None, "undecided"),
        ([*CLEAR[:5], -0.06], None, "undecided"),
    ],
)
def test_a_verdict_needs_interval_and_test_and_six_seeds(
    values: list[float], margin: float | None, verdict: str
) -> None:
    assert judged(runs(values), zero(len(values)), margin).verdict == verdict


def test_only_seeds_that_both_have_are_compared() -> None:
    found = judged({**runs(CLEAR), 9: 0.0}, {**zero(6), 8: 1.0})
    assert found.seeds == 6
    assert found.interval.mean == pytest.approx(np.mean(CLEAR))
    with pytest.raises(UserError, match="gta shares no seed"):
        against({0: 0.5}, {"gta": {1: 0.5}})


def test_the_probability_of_winning_counts_ties_half() -> None:
    found = judged(runs([0.1, 0.1, 0.0, -0.1]), zero(4))
    assert found.wins.mean == 2.5 / 4
    all_won = judged(runs(CLEAR), zero(6)).wins
    # Clopper and Pearson: six of six have a lower bound of 0.025^(1/6).
    assert (all_won.mean, all_won.high) == (1.0, 1.0)
    assert all_won.low == pytest.approx(0.025 ** (1 / 6))


def test_several_comparisons_raise_p_and_never_lower_it() -> None:
    noise = np.random.default_rng(0).normal([0.05, 0.015, 0.01, 0.0], 0.02, (8, 4))
    methods = {f"m{i}": runs(list(column)) for i, column in enumerate(noise.T)}
    alone = [judged(method, zero(8)).p for method in methods.values()]
    together = [found.p for found in against(zero(8), methods).values()]
    assert all(p >= own for p, own in zip(together, alone, strict=True))
    assert together[0] == alone[0] == 2 / 2**8  # a clear one stays clear
    assert together[2] > alone[2]
    # By hand: the last in order of size is held against the flips of its own column alone, but stays in order.
    assert sorted(together) == [together[i] for i in np.argsort(alone)]


def test_the_adjusted_p_is_that_of_the_largest_statistic_by_hand() -> None:
    columns = np.array([CLEAR, UNCLEAR]).T
    scale = np.sqrt((columns**2).sum(axis=0))
    flips = [np.abs(np.array(s) @ columns) / scale for s in itertools.product((-1, 1), repeat=6)]
    own = np.abs(columns.sum(axis=0)) / scale
    found = against(zero(6), {"clear": runs(CLEAR), "unclear": runs(UNCLEAR)})
    assert found["clear"].p == pytest.approx(np.mean([flip.max() >= own[0] - 1e-9 for flip in flips]))
    assert found["unclear"].p == pytest.approx(np.mean([flip[1] >= own[1] - 1e-9 for flip in flips]))


def test_the_leading_group_has_all_that_none_is_better_than() -> None:
    clearly = {"finetune": zero(6), "gta": runs(CLEAR), "scratch": runs([v - 0.3 for v in UNCLEAR])}
    assert leading(clearly) == ["gta"]
    assert leading({**clearly, "twin": runs([v - 0.001 * (-1) ** i - 0.0001 for i, v in enumerate(CLEAR)])}) == [
        "gta",
        "twin",
    ]
    assert leading({name: {s: v for s, v in of.items() if s < 5} for name, of in clearly.items()}) == [
        "gta",
        "finetune",
        "scratch",
    ]


def test_more_seeds_are_asked_for_until_a_t_test_would_decide() -> None:
    values = [0.01, 0.03, -0.01, 0.02]
    found = judged(runs(values), zero(4))
    assert found.more is not None
    total, mean, deviation = 4 + found.more, np.mean(values), np.std(values, ddof=1)

    def half(seeds: int) -> float:
        return float(stats.t.ppf(0.975, seeds - 1) * deviation / math.sqrt(seeds))

    assert half(total) < mean <= half(total - 1)
    assert judged(runs(CLEAR[:3]), zero(3)).more == 3  # never with fewer than six
    assert judged(runs(CLEAR), zero(6)).more is None
    assert judged(runs([0.01, -0.01]), zero(2)).more is None


def test_a_margin_of_nothing_and_a_seed_twice_are_refused() -> None:
    with pytest.raises(UserError, match="margin is 0; give the difference that would not matter"):
        judged(runs(CLEAR), zero(6), 0.0)
    with pytest.raises(UserError, match="seed 3 is given twice"):
        paired([(3, 0.5), (4, 0.5), (3, 0.6)])
    with pytest.raises(UserError, match="max_seeds is 5; give 6 to 50"):
        until_sure(zero(3), {"gta": zero(3)}, max_seeds=5)
    with pytest.raises(UserError, match="can't be lowered"):
        until_sure(zero(8), {"gta": zero(8)}, max_seeds=7)


def test_sentences() -> None:
    better = judged(runs(CLEAR), zero(6))
    assert sentence("gta", "finetune", better) == (
        "gta is better than finetune: +2.3 points (1.5 to 3.1), p = 0.031, six seeds"
    )
    worse = judged(runs([-value for value in CLEAR]), zero(6))
    assert sentence("copy", "finetune", worse).startswith("copy is worse than finetune: −2.3 points (−3.1 to −1.5), p")
    early = judged(runs(CLEAR[:4]), zero(4))
    assert sentence("gta", "finetune", early).endswith("p = 0.125, four seeds; about 2 more seeds would decide")
    alike = judged(runs(UNCLEAR), zero(6), 0.05)
    assert sentence("gta", "finetune", alike).startswith("gta is as good as finetune (within ±5.0 points): ")
    once = judged(runs([0.01]), zero(1))
    assert sentence("gta", "finetune", once).startswith(
        "undecided between gta and finetune: +1.0 points, p = 1.000, one"
    )
    assert leading_text(["gta"], 3) == "gta leads"
    assert leading_text(["gta", "copy"], 3).startswith("gta and copy lead")
    assert leading_text(["gta", "copy"], 2).startswith("no method leads: none of the two methods")


# Looked at after every seed.


def test_a_clear_difference_is_decided_at_the_sixth_seed_and_stays_decided() -> None:
    for seeds in (6, 7, 8):
        method = runs([*CLEAR, -0.2, -0.2][:seeds])
        found = until_sure(zero(seeds), {"gta": method}, max_seeds=12)["gta"]
        assert (found.verdict, found.seeds, found.more) == ("better", 6, None)


def test_before_the_first_look_nothing_is_said() -> None:
    found = until_sure(zero(5), {"gta": runs(CLEAR[:5])}, max_seeds=12)["gta"]
    assert (found.verdict, found.seeds, found.more) == ("undecided", 5, 1)
    assert (found.interval.low, found.interval.high) == (-math.inf, math.inf)
    assert sentence("gta", "finetune", found) == (
        "undecided between gta and finetune: +2.3 points (no interval before six seeds), five seeds; about 1 more seed "
        "would decide"
    )


def test_a_method_that_is_decided_needs_no_further_seeds() -> None:
    unclear = [*UNCLEAR, 0.01, -0.02]
    found = until_sure(zero(8), {"gta": runs(CLEAR), "copy": runs(unclear)}, max_seeds=12, margin=0.001)
    assert (found["gta"].verdict, found["gta"].seeds) == ("better", 6)
    assert (found["copy"].verdict, found["copy"].seeds) == ("undecided", 8)


def test_a_tight_interval_inside_the_margin_ends_the_search() -> None:
    alike = runs([0.001, -0.001, 0.002, -0.002, 0.001, 0.0])
    found = until_sure(zero(6), {"gta": alike}, max_seeds=12, margin=0.01)["gta"]
    assert (found.verdict, found.seeds) == ("equivalent", 6)


@pytest.mark.parametrize("seeds", [6, 8, 9])
def test_no_more_sign_patterns_are_decided_than_the_looks_may_spend(seeds: int) -> None:
    """All 2^(n-1) patterns of signs of the same differences: at most 5 % of them may end in a verdict."""
    sizes = np.abs(np.random.default_rng(seeds).normal(0, 0.02, seeds))
    signs = np.array(list(itertools.product((1, -1), repeat=seeds)))[: 2 ** (seeds - 1)]
    wrong = sum(
        until_sure(zero(seeds), {"m": runs(list(row * sizes))}, max_seeds=seeds)["m"].verdict != "undecided"
        for row in signs
    )
    assert 0 < wrong / len(signs) <= 0.05


def test_bounds_are_crossed_by_as_many_paths_as_may() -> None:
    paths = np.abs(np.random.default_rng(0).normal(size=(4000, 7)))
    shares = spent(12)
    crossed = np.zeros(4000, dtype=bool)
    for path, bound, share in zip(paths.T, thresholds(paths, shares), shares, strict=True):
        crossed |= path > bound
        assert share - 1 / 4000 <= crossed.mean() <= share


# Equal labels.


def test_the_labels_of_a_straight_curve_are_found() -> None:
    # 50 % at 5 labels, 60 % at 10, 70 % at 20: ten points with each doubling.
    curve: dict[float, dict[int, float]] = {
        n: {s: 0.5 + 0.1 * math.log2(n / 5) + 0.01 * s for s in range(3)} for n in (5, 10, 20)
    }
    method = {s: 0.65 + 0.01 * s for s in range(3)}
    found = equal_labels(method, curve)
    assert found.amount.mean == pytest.approx(5 * 2**1.5, rel=1e-3)
    # All seeds agree exactly, so the interval has no width.
    assert (found.amount.low, found.amount.high) == pytest.approx((5 * 2**1.5, 5 * 2**1.5), rel=1e-3)
    assert equal_labels_text("gta", "5 labels a class", "finetune", found, " labels a class") == (
        "gta with 5 labels a class is as good as finetune with 14.1 labels a class (14.1 to 14.1)"
    )


def test_the_interval_of_labels_widens_with_the_spread_and_ends_where_a_t_test_does() -> None:
    rng = np.random.default_rng(0)
    curve: dict[float, dict[int, float]] = {
        n: {s: 0.5 + 0.1 * math.log2(n / 5) + rng.normal(0, 0.01) for s in range(6)} for n in (5, 10, 20)
    }
    method = {s: 0.61 + rng.normal(0, 0.01) for s in range(6)}
    found = equal_labels(method, curve)
    assert 5 < found.amount.low < found.amount.mean < found.amount.high < 20
    between = math.log(found.amount.high / 10) / math.log(2)
    ahead = [method[s] - (1 - between) * curve[10][s] - between * curve[20][s] for s in range(6)]
    assert stats.ttest_1samp(ahead, 0).pvalue == pytest.approx(0.05, abs=0.005)


@pytest.mark.parametrize(
    ("level", "text"),
    [
        (0.9, "is as good as finetune with more than 20 labels a class (at least 20)"),
        (0.1, "is as good as finetune with fewer than 5 labels a class (at most 5)"),
    ],
)
def test_beyond_the_curve_nothing_is_made_up(level: float, text: str) -> None:
    curve: dict[float, dict[int, float]] = {
        n: {s: 0.5 + 0.1 * math.log2(n / 5) + 0.001 * s for s in range(3)} for n in (5, 10, 20)
    }
    found = equal_labels(dict.fromkeys(range(3), level), curve)
    assert text in equal_labels_text("gta", "5 labels a class", "finetune", found, " labels a class")
    assert math.isinf(found.amount.mean)


def test_a_curve_needs_two_amounts_and_common_seeds() -> None:
    with pytest.raises(UserError, match="two amounts"):
        equal_labels({0: 0.5}, {5: {0: 0.5}})
    with pytest.raises(UserError, match="no seed was run with every amount"):
        equal_labels({0: 0.5}, {5: {0: 0.5}, 10: {1: 0.5}})


# Honesty, in small; benchmarks/honesty.py has it in large.


def test_of_many_comparisons_of_a_method_with_itself_few_are_decided() -> None:
    rng = np.random.default_rng(0)

    def wrong(seeds: int) -> Difference:
        return judged(runs(list(rng.normal(0, 0.02, seeds))), runs(list(rng.normal(0, 0.02, seeds))))

    for seeds in (6, 8):
        assert np.mean([wrong(seeds).verdict != "undecided" for _ in range(400)]) <= 0.05 + 2 * 0.011


def test_the_gaps_interval_covers_at_three_seeds() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        scratch, finetune, method = rng.normal([0.5, 0.9, 0.8], [0.03, 0.015, 0.02], (3, 3)).T
        gap = gap_recovered(list(scratch), list(finetune), list(method))
        hits += gap.low <= 0.75 <= gap.high
    assert 0.93 <= hits / 600 <= 0.97
