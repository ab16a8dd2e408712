"""Intervals and the share of the gap, against hand-worked cases."""

from __future__ import annotations

import math

import pytest

from attention_transfer.experiments.statistics import gap_share, mean_interval


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


def test_the_share_is_the_ratio_of_mean_gains() -> None:
    share = gap_share([0.4, 0.5, 0.6], [0.8, 0.9, 1.0], [0.7, 0.8, 0.9])
    assert share.mean == pytest.approx(0.75)
    # Every seed has the same share, so resampling seeds changes nothing.
    assert (share.low, share.high) == pytest.approx((0.75, 0.75))


def test_the_interval_covers_the_share_and_resamples_whole_seeds() -> None:
    share = gap_share([0.40, 0.50, 0.45, 0.55], [0.80, 0.95, 0.85, 0.90], [0.70, 0.75, 0.80, 0.72])
    assert share.low < share.mean < share.high
    again = gap_share([0.40, 0.50, 0.45, 0.55], [0.80, 0.95, 0.85, 0.90], [0.70, 0.75, 0.80, 0.72])
    assert (again.low, again.high) == (share.low, share.high)


def test_the_ends_of_the_scale_are_exact() -> None:
    scratch, finetune = [0.4, 0.5, 0.6], [0.8, 0.9, 0.7]
    assert gap_share(scratch, finetune, scratch).mean == 0.0
    assert gap_share(scratch, finetune, finetune).mean == 1.0


def test_there_is_no_share_where_fine_tuning_gains_nothing() -> None:
    assert math.isnan(gap_share([0.5, 0.6], [0.5, 0.5], [0.9, 0.9]).mean)
