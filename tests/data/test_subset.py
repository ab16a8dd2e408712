from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from attention_transfer.data import check_subset, class_balanced_weights, labelled_subset
from attention_transfer.errors import UserError, UserErrors

LABELS = [0] * 20 + [1] * 10 + [2] * 5
FRACTION = st.floats(0.01, 1.0)
SEED = st.integers(0, 2**32 - 1)


def counts(chosen: NDArray[np.int64], labels: list[int]) -> list[int]:
    """How many of each class are chosen."""
    return [sum(labels[index] == label for index in chosen) for label in range(max(labels) + 1)]


@settings(deadline=None, max_examples=50)
@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=40), fraction=FRACTION, seed=SEED)
def test_a_fraction_takes_its_share_of_each_class_and_at_least_one(
    labels: list[int], fraction: float, seed: int
) -> None:
    chosen = labelled_subset(labels, fraction=fraction, seed=seed)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    for count, total in zip(counts(chosen, labels), np.bincount(labels), strict=True):
        assert abs(count - max(fraction * total, min(total, 1))) <= 0.5
        assert (count > 0) == (total > 0)


@pytest.mark.parametrize("shots", [1, 3, 5])
def test_shots_take_that_many_of_each_class(shots: int) -> None:
    chosen = labelled_subset(LABELS, shots=shots)
    assert counts(chosen, LABELS) == [shots] * 3
    assert chosen.dtype == np.int64


def test_by_default_all_are_taken() -> None:
    assert labelled_subset(LABELS).tolist() == list(range(35))


@settings(deadline=None, max_examples=25)
@given(few=FRACTION, many=FRACTION, seed=SEED)
def test_smaller_fractions_are_part_of_larger_ones(few: float, many: float, seed: int) -> None:
    few, many = sorted((few, many))
    smaller, larger = (labelled_subset(LABELS, fraction=share, seed=seed) for share in (few, many))
    assert set(smaller) <= set(larger)


@settings(deadline=None, max_examples=25)
@given(seed=SEED, shots=st.integers(1, 4))
def test_fewer_shots_are_part_of_more(seed: int, shots: int) -> None:
    assert set(labelled_subset(LABELS, shots=shots, seed=seed)) < set(
        labelled_subset(LABELS, shots=shots + 1, seed=seed)
    )


def test_the_seed_alone_decides() -> None:
    first, again, other = (labelled_subset(LABELS, shots=4, seed=seed).tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_it_is_not_simply_the_first_of_each_class() -> None:
    chosen = {tuple(labelled_subset(LABELS, shots=2, seed=seed)) for seed in range(5)}
    assert chosen != {(0, 1, 20, 21, 30, 31)}


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, math.nan])
def test_a_fraction_out_of_bounds_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match=f"fraction is {fraction}; .* above 0 and at most 1"):
        labelled_subset(LABELS, fraction=fraction)


def test_all_mistakes_are_listed_at_once() -> None:
    with pytest.raises(UserErrors) as caught:
        labelled_subset(LABELS, fraction=2.0, shots=0)
    assert len(caught.value.messages) == 3
    for part in ("fraction is 2.0", "shots is 0", "fraction=2.0 and shots=0 both choose"):
        assert part in str(caught.value)
    assert check_subset(1.0, 3) == check_subset(0.1, None) == []


def test_more_shots_than_the_rarest_class_has_are_refused() -> None:
    with pytest.raises(UserError, match="shots is 6, but class 2 has only 5 images"):
        labelled_subset(LABELS, shots=6)
    with pytest.raises(UserError, match="class tulip has only 5"):
        labelled_subset(LABELS, shots=6, names=["rose", "daisy", "tulip"])


@settings(deadline=None, max_examples=50)
@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=50))
def test_balanced_weights_give_every_class_the_same_chance(labels: list[int]) -> None:
    weights = class_balanced_weights(labels)
    assert weights.shape == (len(labels),)
    present = sorted(set(labels))
    for label in present:
        of_class = weights[np.array(labels) == label]
        assert of_class.sum() == pytest.approx(1 / len(present))
        assert of_class.min() == of_class.max()
