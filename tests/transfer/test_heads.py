from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from attention_transfer.transfer.heads import HeadPairs, head_divergences, matched_heads
from attention_transfer.vit import POOL

SEED = st.integers(0, 9999)


def maps_of(heads: int, *, seed: int, batch: int = 2, sharpness: float = 3.0) -> Tensor:
    """Random maps in float64 of 4 queries and 5 keys."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, heads, 4, 5, generator=generator, dtype=torch.float64) * sharpness).softmax(dim=-1)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), SEED)
def test_divergences_are_scipys_averaged_over_images_and_rows(h_s: int, h_t: int, batch: int, seed: int) -> None:
    student, teacher = maps_of(h_s, seed=seed, batch=batch), maps_of(h_t, seed=seed + 1, batch=batch)
    expected = np.zeros((h_s, h_t))
    for s, t in product(range(h_s), range(h_t)):
        rows = [
            jensenshannon(student[image, s, row].numpy(), teacher[image, t, row].numpy()) ** 2
            for image, row in product(range(batch), range(4))
        ]
        expected[s, t] = np.mean(rows)
    torch.testing.assert_close(head_divergences(student, teacher), torch.from_numpy(expected), atol=1e-12, rtol=1e-9)


def test_two_distributions_worked_by_hand() -> None:
    """(1, 0) against (0, 1) shares nothing; against (1/2, 1/2) the middle is (3/4, 1/4)."""
    student = torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64)
    teacher = torch.tensor([[[[0.0, 1.0]], [[0.5, 0.5]], [[1.0, 0.0]]]], dtype=torch.float64)
    half = -0.75 * math.log(0.75) - 0.25 * math.log(0.25) - math.log(2) / 2
    assert head_divergences(student, teacher).tolist() == [[pytest.approx(math.log(2)), pytest.approx(half), 0.0]]


@settings(deadline=None, max_examples=25)
@given(SEED, st.floats(0.0, 40.0))
def test_divergences_lie_between_nothing_and_ln_2_and_exchanging_the_sides_transposes_them(
    seed: int, sharpness: float
) -> None:
    student, teacher = (maps_of(h, seed=seed + h, sharpness=sharpness) for h in (2, 3))
    divergences = head_divergences(student, teacher)
    assert divergences.shape == (2, 3)
    assert float(divergences.min()) >= 0
    assert float(divergences.max()) <= math.log(2) + 1e-12
    torch.testing.assert_close(head_divergences(teacher, student), divergences.T)
    assert float(head_divergences(student, student).diagonal().max()) < 1e-12


def test_single_precision_is_enough_to_tell_heads_apart() -> None:
    student, teacher = maps_of(3, seed=0), maps_of(4, seed=1)
    single = head_divergences(student.float(), teacher.float())
    torch.testing.assert_close(single.double(), head_divergences(student, teacher), atol=1e-6, rtol=1e-5)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(0, 2), SEED)
def test_matched_heads_have_the_least_sum_of_all_permutations(h_s: int, more: int, seed: int) -> None:
    divergences = torch.rand(h_s, h_s + more, generator=torch.Generator().manual_seed(seed))
    matched = matched_heads(divergences)
    assert len(set(matched.tolist())) == h_s
    sums = {
        order: sum(float(divergences[s, t]) for s, t in enumerate(order))
        for order in permutations(range(h_s + more), h_s)
    }
    assert tuple(matched.tolist()) == min(sums, key=lambda order: sums[order])


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), SEED)
def test_each_head_takes_the_most_alike_one_where_the_teacher_has_fewer(h_t: int, more: int, seed: int) -> None:
    divergences = torch.rand(h_t + more, h_t, generator=torch.Generator().manual_seed(seed))
    rows = divergences.tolist()
    assert matched_heads(divergences).tolist() == [row.index(min(row)) for row in rows]


@given(st.permutations(range(4)), SEED)
@settings(deadline=None, max_examples=25)
def test_heads_that_were_shuffled_are_found_again(order: list[int], seed: int) -> None:
    teacher = maps_of(4, seed=seed)
    assert matched_heads(head_divergences(teacher[:, order], teacher)).tolist() == order


def test_matching_prefers_the_best_sum_over_the_best_head() -> None:
    """Head 0 of the student would rather have head 0, but then head 1 would pay for it."""
    assert matched_heads(torch.tensor([[0.1, 0.2], [0.1, 0.9]])).tolist() == [1, 0]


def test_pairs_are_unknown_at_first_and_saved_once_found() -> None:
    pairs = HeadPairs(depth=3, heads=2)
    assert pairs.missing([0, 1]) == [0, 1]
    assert pairs.state_dict()["pairs"].tolist() == [[-1, -1]] * 3
    pairs.set(1, torch.tensor([[0.1, 0.2, 0.9], [0.1, 0.9, 0.3]]))
    assert pairs.missing([0, 1]) == [0]
    assert pairs.of(1) is not None
    assert pairs.state_dict()["pairs"].tolist() == [[-1, -1], [1, 0], [-1, -1]]
    other = HeadPairs(depth=3, heads=2)
    other.load_state_dict(pairs.state_dict())
    assert other.missing([1]) == []
    assert torch.equal(other.pairs, pairs.pairs)
    assert list(other.parameters()) == []


def test_pairs_stay_whole_numbers_in_any_precision() -> None:
    pairs = HeadPairs(depth=1, heads=2)
    pairs.set(0, torch.rand(2, 9))
    assert pairs.to(torch.float16).pairs.dtype == torch.int64


def test_the_pooling_head_has_no_pairs() -> None:
    assert HeadPairs(depth=2, heads=2).of(POOL) is None
