"""Figures of a classifier against plain loops, scikit-learn, and exact tests."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score

from attention_transfer import UserError
from attention_transfer.evaluation import bca, classification, paired_difference
from attention_transfer.evaluation.metrics import calibration_error, image_scores, reliability

Floats = NDArray[np.float64]


def example(images: int = 60, classes: int = 7) -> tuple[Floats, NDArray[np.int64]]:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, classes, images)
    return draw.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels], labels


def test_figures_are_those_of_scikit_learn_and_of_plain_loops() -> None:
    logits, labels = example()
    found = classification(logits, labels)
    p = np.array([[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in logits.tolist()])
    assert found.top1.value == pytest.approx(top_k_accuracy_score(labels, p, k=1))
    assert found.top5 is not None
    assert found.top5.value == pytest.approx(top_k_accuracy_score(labels, p, k=5))
    assert found.nll.value == pytest.approx(log_loss(labels, p))
    assert found.mean_per_class == pytest.approx(balanced_accuracy_score(labels, p.argmax(axis=1)))
    assert found.confusion == tuple(map(tuple, confusion_matrix(labels, p.argmax(axis=1)).tolist()))
    brier = [sum((row[c] - (c == y)) ** 2 for c in range(7)) for row, y in zip(p, labels, strict=True)]
    assert found.brier.value == pytest.approx(np.mean(brier))
    assert json.loads(json.dumps(dataclasses.asdict(found)))["images"] == 60
    assert classification(logits[:, :4], labels % 4).top5 is None


def test_a_class_without_images_does_not_count() -> None:
    found = classification([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0]], [0, 1])
    assert found.per_class == (1.0, 1.0, None)
    assert found.mean_per_class == 1


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1), st.booleans()), min_size=1))
def test_calibration_is_an_independent_count_also_at_confidence_1(pairs: list[tuple[float, bool]]) -> None:
    error, bins = 0.0, 4
    for b in range(bins):
        inside = [(c, right) for c, right in pairs if (b / bins < c <= (b + 1) / bins) or (b == 0 and c == 0)]
        if inside:
            error += abs(sum(right for _, right in inside) - sum(c for c, _ in inside)) / len(pairs)
    confidence, correct = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    table = reliability(confidence, correct, bins=bins)
    assert len(table) == bins
    assert sum(each.images for each in table) == len(pairs)
    assert calibration_error(table) == pytest.approx(error, abs=1e-12)


def test_intervals_are_scipys_and_none_where_there_is_no_spread() -> None:
    values = np.random.default_rng(1).exponential(size=40)
    found = bca(values)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high])
    assert found.value == pytest.approx(values.mean())
    assert (bca([1.0, 1.0]).low, bca([0.5]).high) == (None, None)
    with pytest.raises(UserError, match="nothing to average"):
        bca([])


def test_intervals_cover_the_mean_about_as_often_as_they_say() -> None:
    draw, covered = np.random.default_rng(2), 0
    for seed in range(100):
        found = bca(draw.exponential(size=50), resamples=500, seed=seed)
        assert found.low is not None and found.high is not None
        covered += found.low <= 1 <= found.high
    assert 86 <= covered <= 100


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_the_p_value_is_the_share_of_sign_flips(differences: list[int]) -> None:
    found = paired_difference([float(d) for d in differences], [0.0] * len(differences), resamples=50)
    total = abs(sum(differences))
    flips = list(itertools.product([1, -1], repeat=len(differences)))
    extreme = sum(abs(sum(s * d for s, d in zip(flip, differences, strict=True))) >= total for flip in flips)
    assert found.p == pytest.approx(extreme / len(flips))
    assert found.difference.value == pytest.approx(np.mean(differences))


def test_right_and_wrong_predictions_give_mcnemars_exact_test() -> None:
    a, b = np.ones(300), np.ones(300)
    a[:3], b[3:13] = 0, 0
    found = paired_difference(a, b)
    assert (found.images, found.differing) == (300, 13)
    assert found.p == pytest.approx(stats.binomtest(3, 13).pvalue)
    many = paired_difference(np.tile(a, 10), np.tile(b, 10))  # 130 images differ: random flips
    assert many.p < 0.001


def test_of_equal_logits_the_first_class_wins() -> None:
    assert image_scores([[1.0, 1.0]], [1]).top1[0] == 0
    five = image_scores(np.zeros((2, 6)), [4, 5]).top5
    assert five is not None and five.tolist() == [1, 0]


def test_mistakes_are_said() -> None:
    with pytest.raises(UserError, match=r"labels go from 0 to 3, but there are 2 classes"):
        classification(np.zeros((2, 2)), [0, 3])
    with pytest.raises(UserError, match=r"\(images, classes\)"):
        classification(np.zeros((2, 2)), [0])
    with pytest.raises(UserError, match="not finite"):
        classification([[np.nan, 0.0]], [0])
    with pytest.raises(UserError, match="values of 1 and 2 images"):
        paired_difference([1.0], [1.0, 0.0])
