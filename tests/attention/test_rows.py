"""Distances of two rows of logits, against SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.spatial
import scipy.special
import scipy.stats
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.attention import rows

Array = NDArray[np.float64]

DISTANCES = [rows.cross_entropy, rows.kl, rows.js, rows.mse, rows.logit_l2]
each_distance = pytest.mark.parametrize("distance", DISTANCES, ids=lambda distance: distance.__name__)
OF_MAPS = DISTANCES[:-1]

SCIPY: dict[rows.RowDistance, Callable[[Array, Array], float]] = {
    rows.cross_entropy: lambda a, b: float(
        scipy.stats.entropy(scipy.special.softmax(b))
        + scipy.stats.entropy(scipy.special.softmax(b), scipy.special.softmax(a))
    ),
    rows.kl: lambda a, b: float(scipy.stats.entropy(scipy.special.softmax(b), scipy.special.softmax(a))),
    rows.js: lambda a, b: float(
        scipy.spatial.distance.jensenshannon(scipy.special.softmax(a), scipy.special.softmax(b)) ** 2
    ),
    rows.mse: lambda a, b: float(
        scipy.spatial.distance.sqeuclidean(scipy.special.softmax(a), scipy.special.softmax(b))
    ),
    rows.logit_l2: lambda a, b: float(scipy.spatial.distance.sqeuclidean(a, b)),
}


@each_distance
@settings(deadline=None, max_examples=50)
@given(pair=arrays(np.float64, st.tuples(st.just(2), st.integers(1, 6)), elements=st.floats(-30, 30)))
def test_one_row_matches_scipy(distance: rows.RowDistance, pair: Array) -> None:
    a, b = pair
    value = distance(torch.tensor(a), torch.tensor(b))
    expected = SCIPY[distance](a, b)
    assume(not math.isnan(expected))  # SciPy's square root of a divergence that rounding made negative
    # SciPy takes the logarithm of a softmax: a weight of 1e-26 beside 1 keeps all its digits.
    assert value.item() == pytest.approx(expected, rel=1e-10, abs=1e-13)


@each_distance
@pytest.mark.parametrize("leading", [(), (5,), (2, 3, 5), (2, 0), (0, 3)], ids=str)
def test_takes_any_leading_dimensions(distance: rows.RowDistance, leading: tuple[int, ...]) -> None:
    student, teacher = torch.randn(2, *leading, 4, dtype=torch.float64)
    value = distance(student, teacher)
    assert value.shape == leading
    for index in np.ndindex(*leading):
        torch.testing.assert_close(value[index], distance(student[index], teacher[index]))


@each_distance
def test_gradients_pass_gradcheck_with_dead_rows_and_keys(distance: rows.RowDistance) -> None:
    student, teacher = torch.randn(2, 4, 5, dtype=torch.float64)
    student[1], teacher[1] = -math.inf, -math.inf
    student[:, 2] = teacher[:, 2] = -math.inf
    if distance is not rows.logit_l2:
        student[2] = -math.inf
        teacher[3] = -math.inf
        teacher[0, 0] = -math.inf
    live = student.isfinite(), teacher.isfinite()

    def of_the_live(a: Tensor, b: Tensor) -> Tensor:
        return distance(student.masked_scatter(live[0], a), teacher.masked_scatter(live[1], b))

    inputs = [side[alive].requires_grad_() for side, alive in zip((student, teacher), live, strict=True)]
    assert torch.autograd.gradcheck(of_the_live, inputs)


@pytest.mark.parametrize("distance", OF_MAPS, ids=lambda distance: distance.__name__)
@pytest.mark.parametrize("dead", [(True, False), (False, True), (True, True)], ids=["student", "teacher", "both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_row_that_one_side_does_not_see_is_zero(
    distance: rows.RowDistance, dead: tuple[bool, bool], dtype: torch.dtype
) -> None:
    sides = [torch.randn(2, 3).to(dtype) for _ in dead]
    for side, blind in zip(sides, dead, strict=True):
        side[0, :] = -math.inf if blind else side[0, :]
        side.requires_grad_()
    value = distance(sides[0], sides[1])
    assert value[0] == 0
    for gradient in torch.autograd.grad(value.sum(), sides):
        assert torch.equal(gradient[0], torch.zeros(3, dtype=dtype))
        assert gradient.isfinite().all()


@each_distance
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_key_that_neither_side_sees_adds_nothing(distance: rows.RowDistance, dtype: torch.dtype) -> None:
    student, teacher = torch.randn(2, 4, 5).to(dtype)
    alone = distance(student[:, 1:], teacher[:, 1:])
    student, teacher = (
        side.index_fill(1, torch.tensor([0]), -math.inf).requires_grad_() for side in (student, teacher)
    )
    value = distance(student, teacher)
    torch.testing.assert_close(value, alone)
    for gradient in torch.autograd.grad(value.sum(), [student, teacher]):
        assert torch.equal(gradient[:, 0], torch.zeros(4, dtype=dtype))
        assert gradient.isfinite().all()


@each_distance
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_mask_of_the_most_negative_number_is_finite_too(distance: rows.RowDistance, dtype: torch.dtype) -> None:
    """As Hugging Face writes masks: finfo.min in the place of -inf, for a key, and for a whole row."""
    student, teacher = torch.randn(2, 3, 4).to(dtype)
    for side in (student, teacher):
        side[0, 1] = side[1, :] = torch.finfo(dtype).min
        side.requires_grad_()
    value = distance(student, teacher)
    gradients = torch.autograd.grad(value.sum(), [student, teacher])
    assert value.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("distance", OF_MAPS, ids=lambda distance: distance.__name__)
def test_maps_do_not_change_with_a_constant_on_all_keys(distance: rows.RowDistance) -> None:
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    shifted = distance(student + 1e4, teacher - torch.tensor([[1e3], [0.0], [-7.0]]))
    torch.testing.assert_close(shifted, distance(student, teacher), rtol=1e-10, atol=1e-10)


def test_opposite_one_hot_rows_are_as_far_apart_as_can_be() -> None:
    student = torch.tensor([[1e4, -1e4]], dtype=torch.float64)
    teacher = -student
    assert rows.cross_entropy(student, teacher).item() == 2e4
    assert rows.kl(student, teacher).item() == 2e4
    assert rows.js(student, teacher).item() == pytest.approx(math.log(2))
    assert rows.mse(student, teacher).item() == 2.0
    assert rows.logit_l2(student, teacher).item() == 2 * 2e4**2


def test_softmax_is_zero_for_a_row_without_keys() -> None:
    logits = torch.randn(2, 3, dtype=torch.float64)
    logits[1] = -math.inf
    logits.requires_grad_()
    maps = rows.softmax(logits)
    np.testing.assert_allclose(maps.detach()[0], scipy.special.softmax(logits.detach()[0].numpy()))
    assert torch.equal(maps[1], torch.zeros(3).double())
    (gradient,) = torch.autograd.grad((maps * torch.arange(6).reshape(2, 3)).sum(), logits)
    assert gradient.isfinite().all()
    assert torch.equal(gradient[1], torch.zeros(3).double())
