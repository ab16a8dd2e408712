"""Every loss and every way to compute it, against loops in float64, hand-worked cases and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.spatial
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attention_transfer.attention import (
    AttentionCall,
    attention_cross_entropy,
    attention_js,
    attention_kl,
    attention_mse,
    distilled_attention,
    logit_l2,
    output_l2,
    tiles,
)


def class_row(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    *,
    scale_s: float | None = None,
    scale_t: float | None = None,
    mask_s: Tensor | None = None,
    mask_t: Tensor | None = None,
) -> Tensor:
    """The distance of the class token's logits alone, (B, H), as the rule of GTA computes it."""
    s, t = AttentionCall.of(q_s, k_s, scale_s, mask_s), AttentionCall.of(q_t, k_t, scale_t, mask_t)
    return logit_l2.between(s.rows(slice(0, 1)), t.rows(slice(0, 1))).squeeze(-1)


Array = NDArray[np.float64]
Loss = Callable[..., Tensor]
Masks = tuple[Tensor | None, Tensor | None]

MAPS: list[Loss] = [attention_cross_entropy, attention_kl, attention_js, attention_mse]
FUSED: list[Loss] = [attention_cross_entropy, attention_kl]
ROWS: list[Loss] = [*MAPS, logit_l2]
ALL: list[Loss] = [*ROWS, class_row]
UNFUSED_WAYS = [(loss, impl) for loss in ROWS for impl in ("reference", "chunked")]
WAYS = UNFUSED_WAYS + [(loss, "flash") for loss in FUSED]


def _name(value: object) -> str:
    return str(getattr(value, "__name__", value))


each_loss = pytest.mark.parametrize("loss", ALL, ids=_name)
each_way = pytest.mark.parametrize(("loss", "impl"), WAYS, ids=_name)
SEED = st.integers(0, 9999)
SIZE = st.integers(1, 6)


@pytest.fixture(autouse=True)
def _tiles_of_two_rows() -> Iterator[None]:
    """Small maps have several tiles too, and a last one that is not full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "tile_rows", lambda q, k: 2)
        yield


def operands(seed: int = 0, d_s: int = 3, d_t: int = 3, n: int = 3, m: int = 4, b: int = 2, h: int = 2) -> list[Tensor]:
    """q_s, k_s, q_t, k_t in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n, d_s), (m, d_s), (n, d_t), (m, d_t)]
    return [torch.randn(b, h, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def leaves(tensors: Sequence[Tensor], teacher: bool = True) -> list[Tensor]:
    """Copies that need a gradient; with `teacher=False` the last two, the teacher's, are constants."""
    student = len(tensors) if teacher else len(tensors) - 2
    return [x.detach().clone().requires_grad_(i < student) for i, x in enumerate(tensors)]


def value_and_gradients(loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Of a weighted sum of the rows, so that no row's gradient hides behind another's."""
    value = loss(*inputs)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
    wanted = [x for x in inputs if x.requires_grad]
    return value.detach(), torch.autograd.grad((value * weights).sum(), wanted)


# The losses written down a second time: one pair of logits after another, in float64.


def naive(loss: Loss, inputs: Sequence[Tensor], scales: Sequence[float | None], masks: Masks) -> Array:
    """What a loss should be."""
    q_s, k_s, q_t, k_t = (x.detach().double().numpy() for x in inputs)
    b, h, n = q_s.shape[:3]
    sides = [(q_s, k_s, scales[0], masks[0]), (q_t, k_t, scales[1], masks[1])]
    student, teacher = (naive_logits(*side) for side in sides)
    result = np.zeros((b, h, n))
    for row in np.ndindex(b, h, n):
        result[row] = naive_row(loss, student[row], teacher[row])
    return result[:, :, 0] if loss is class_row else result


def naive_logits(q: Array, k: Array, scale: float | None, mask: Tensor | None) -> Array:
    b, h, n, d = q.shape
    m = k.shape[2]
    allowed, added = np.ones((b, h, n, m), dtype=bool), np.zeros((b, h, n, m))
    if mask is not None and mask.dtype == torch.bool:
        allowed = np.broadcast_to(mask.numpy(), (b, h, n, m))
    elif mask is not None:
        added = np.broadcast_to(mask.detach().double().numpy(), (b, h, n, m))
    logits = np.zeros((b, h, n, m))
    for x, y, i, j in np.ndindex(b, h, n, m):
        product = sum(q[x, y, i, c] * k[x, y, j, c] for c in range(d))
        scaled = product / math.sqrt(d) if scale is None else product * scale
        logits[x, y, i, j] = scaled + added[x, y, i, j] if allowed[x, y, i, j] else -math.inf
    return logits


def naive_row(loss: Loss, a: Array, b: Array) -> float:
    keys = range(len(a))
    if loss in (logit_l2, class_row):
        return float(sum((a[j] - b[j]) ** 2 for j in keys if not (a[j] == b[j] == -math.inf)))
    if (a == -math.inf).all() or (b == -math.inf).all():
        return 0.0
    p, q = scipy.special.softmax(a), scipy.special.softmax(b)
    middle = (p + q) / 2
    log_p = scipy.special.log_softmax(a)
    values: dict[Loss, Callable[[], Any]] = {
        attention_cross_entropy: lambda: -sum(q[j] * log_p[j] for j in keys if q[j] > 0),
        attention_kl: lambda: sum(q[j] * (math.log(q[j]) - log_p[j]) for j in keys if q[j] > 0),
        attention_js: lambda: (scipy.special.rel_entr(p, middle) + scipy.special.rel_entr(q, middle)).sum() / 2,
        attention_mse: lambda: sum((p[j] - q[j]) ** 2 for j in keys),
    }
    return float(values[loss]())


def reach(inputs: Sequence[Tensor]) -> float:
    """How far a logit and its log-sum-exp can be from 0, without masks: what rounding errors are relative to."""
    q_s, k_s, q_t, k_t = (x.detach().double().abs() for x in inputs)
    largest = max(float((q @ k.mT).max()) * q.shape[-1] ** -0.5 for q, k in ((q_s, k_s), (q_t, k_t)))
    return float(largest + math.log(k_s.shape[2]) + 1)


def budget(loss: Loss, inputs: Sequence[Tensor], dtype: torch.dtype, expected: Array) -> Array:
    """How far a value may be from the exact one.

    A number that is stored is rounded to its dtype, about eight times on the way from q and k to a row; sums over D
    and M run in float32 or wider.
    """
    stored = torch.finfo(dtype).eps / 2
    summed = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    d, m = max(x.shape[-1] for x in inputs), inputs[1].shape[2]
    size = reach(inputs)
    result: Array = np.full_like(expected, size * (8 * stored + (d + m) * summed))
    if loss is logit_l2:  # Σ 2·|difference|·error ≤ 2·√M·√(Σ difference²)·error, by Cauchy and Schwarz
        result = 2 * np.sqrt(m * expected) * result + m * result**2 + expected * (4 * stored + m * summed)
    return result


# Values.


def test_two_tokens_worked_by_hand() -> None:
    """Scale 1 and one dimension: row 0 has P_t = (3/4, 1/4) and P_s = (1/5, 4/5), row 1 has both halves."""
    q = torch.tensor([[[[1.0], [0.0]]]], dtype=torch.float64)
    k_s = torch.tensor([[[[0.0], [math.log(4)]]]], dtype=torch.float64)
    k_t = torch.tensor([[[[math.log(3)], [0.0]]]], dtype=torch.float64)
    kl = 0.75 * math.log(0.75 / 0.2) + 0.25 * math.log(0.25 / 0.8)
    # The middle of the maps is (19/40, 21/40).
    js_s = 0.2 * math.log(0.2 / 0.475) + 0.8 * math.log(0.8 / 0.525)
    js_t = 0.75 * math.log(0.75 / 0.475) + 0.25 * math.log(0.25 / 0.525)
    distance = math.log(3) ** 2 + math.log(4) ** 2
    by_hand: dict[Loss, list[float]] = {
        attention_cross_entropy: [-0.75 * math.log(0.2) - 0.25 * math.log(0.8), math.log(2)],
        attention_kl: [kl, 0.0],
        attention_js: [(js_s + js_t) / 2, 0.0],
        attention_mse: [2 * 0.55**2, 0.0],
        logit_l2: [distance, 0.0],
    }
    for loss, impl in WAYS:
        assert loss(q, k_s, q, k_t, impl=impl)[0, 0].tolist() == pytest.approx(by_hand[loss], abs=1e-15), (loss, impl)
    assert class_row(q, k_s, q, k_t).tolist() == [[pytest.approx(distance)]]


def test_one_key_leaves_nothing_to_tell_apart() -> None:
    """A single key has all the weight on both sides, so that the maps agree whatever the logits are."""
    inputs = operands(m=1)
    for loss, impl in WAYS:
        if loss in MAPS:
            torch.testing.assert_close(loss(*inputs, impl=impl), torch.zeros(2, 2, 3).double(), atol=1e-14, rtol=0)


@each_loss
@pytest.mark.parametrize(("scale_s", "scale_t"), [(None, None), (0.2, 1.5), (-0.5, 0.0)])
def test_matches_loops_with_other_dimensions_scales_and_biases_on_the_two_sides(
    loss: Loss, scale_s: float | None, scale_t: float | None
) -> None:
    inputs = operands(seed=1, d_s=2, d_t=5)
    masks = torch.randn(1, 2, 3, 4).double(), torch.randn(2, 1, 3, 4).double()
    actual = loss(*inputs, scale_s=scale_s, scale_t=scale_t, mask_s=masks[0], mask_t=masks[1])
    np.testing.assert_allclose(actual, naive(loss, inputs, (scale_s, scale_t), masks), rtol=1e-10)


@settings(deadline=None, max_examples=150)
@given(
    way=st.sampled_from(WAYS),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    sizes=st.tuples(*[SIZE] * 6),
    spread=st.sampled_from([0.1, 1.0, 3.0]),
    seed=SEED,
)
def test_every_way_is_within_the_rounding_of_its_dtype(
    way: tuple[Loss, str], dtype: torch.dtype, sizes: tuple[int, ...], spread: float, seed: int
) -> None:
    loss, impl = way
    b, h, n, m, d_s, d_t = sizes
    inputs = [(spread * x).to(dtype) for x in operands(seed, d_s, d_t, n, m, b, h)]
    expected = naive(loss, inputs, (None, None), (None, None))
    error = np.abs(loss(*inputs, impl=impl).double().numpy() - expected)
    assert (error <= budget(loss, inputs, dtype, expected)).all()


@settings(deadline=None, max_examples=150)
@given(
    way=st.sampled_from(WAYS),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    sizes=st.tuples(*[SIZE] * 6),
    seed=SEED,
    teacher=st.booleans(),
)
def test_gradients_of_every_way_are_within_the_rounding_of_its_dtype(
    way: tuple[Loss, str], dtype: torch.dtype, sizes: tuple[int, ...], seed: int, teacher: bool
) -> None:
    """A logit's gradient has an error like that of a row's value; N or M of them meet in a query's or a key's."""
    loss, impl = way
    b, h, n, m, d_s, d_t = sizes
    inputs = leaves([x.to(dtype) for x in operands(seed, d_s, d_t, n, m, b, h)], teacher)
    value, gradients = value_and_gradients(lambda *x: loss(*x, impl=impl), inputs)
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    _, expected = value_and_gradients(lambda *x: loss(*x, impl="reference"), exact)
    steepest = 4 * reach(inputs) if loss is logit_l2 else 1.0
    largest = max(float(x.detach().abs().max()) for x in inputs)
    allowed = budget(attention_mse, inputs, dtype, value.double().numpy()).max() * max(n, m) * largest * steepest
    for gradient, true in zip(gradients, expected, strict=True):
        assert (gradient.double() - true).abs().max() <= allowed


# Gradients.


def some_masks(form: str) -> Masks:
    """Masks of (2, 2, 3, 4) logits; the additive ones need a gradient, the boolean ones have a dead row."""
    generator = torch.Generator().manual_seed(5)

    def additive(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    allowed = torch.tensor([True, False, True, True]).repeat(2, 1, 3, 1)
    allowed[0, :, 1] = False
    dead = torch.ones(3, 1, dtype=torch.bool)
    dead[2] = False
    hidden = torch.zeros(2, 1, 3, 4).double().masked_fill(~allowed, -math.inf)
    forms: dict[str, Callable[[], Masks]] = {
        "boolean on both": lambda: (allowed, allowed),
        "boolean on the teacher": lambda: (None, allowed),
        "a dead row of the student": lambda: (dead, None),
        "keys": lambda: (allowed[:, :, :1], allowed[:, :, :1]),
        "-inf on both": lambda: (hidden, hidden),
        "additive on the student": lambda: (additive(2, 1, 3, 4), None),
        "additive on the teacher": lambda: (None, additive(2, 2, 3, 4)),
        "broadcast over keys and rows": lambda: (additive(3, 1), additive(4)),
        "broadcast over rows and images": lambda: (additive(2, 1, 4), additive(1, 2, 3, 4)),
    }
    return forms[form]()


ONE_SIDED = ["boolean on the teacher", "a dead row of the student"]  # where the distance of the logits is infinite
FORMS = [
    *("boolean on both", "keys", "-inf on both", "additive on the student", "additive on the teacher"),
    *("broadcast over keys and rows", "broadcast over rows and images"),
]
each_way_under_each_mask = pytest.mark.parametrize(
    ("loss", "impl", "form"),
    [(*way, form) for way in UNFUSED_WAYS for form in FORMS + ONE_SIDED * (way[0] is not logit_l2)],
    ids=_name,
)


def gradcheck(
    loss: Callable[..., Tensor], inputs: Sequence[Tensor], masks: Masks = (None, None), *, fast: bool = False
) -> bool:
    """Also for the masks that need a gradient; `fast` takes one random direction in place of each element."""
    learned = [mask for mask in masks if mask is not None and mask.requires_grad]

    def run(*tensors: Tensor) -> Tensor:
        given = iter(tensors[len(inputs) :])
        used = [next(given) if mask is not None and mask.requires_grad else mask for mask in masks]
        return loss(*tensors[: len(inputs)], mask_s=used[0], mask_t=used[1])

    return torch.autograd.gradcheck(run, [*inputs, *learned], fast_mode=fast)


@each_way
@pytest.mark.parametrize("teacher", [False, True], ids=["constant teacher", "teacher with gradient"])
@pytest.mark.parametrize(("d_s", "d_t"), [(2, 3), (3, 1)])
def test_gradients_pass_gradcheck(loss: Loss, impl: str, teacher: bool, d_s: int, d_t: int) -> None:
    inputs = leaves(operands(seed=2, d_s=d_s, d_t=d_t, b=1), teacher)
    assert gradcheck(lambda *qk, **masks: loss(*qk, scale_s=0.8, scale_t=-1.3, impl=impl, **masks), inputs)


@each_way
@pytest.mark.parametrize("learned", [(0,), (1,), (2,), (3,), (2, 3)], ids=["q_s", "k_s", "q_t", "k_t", "teacher"])
def test_gradients_of_some_operands_alone_pass_gradcheck(loss: Loss, impl: str, learned: tuple[int, ...]) -> None:
    inputs = operands(seed=2, d_s=2, b=1)

    def run(*given: Tensor) -> Tensor:
        used = dict(zip(learned, given, strict=True))
        return loss(*(used.get(i, x) for i, x in enumerate(inputs)), impl=impl)

    assert torch.autograd.gradcheck(run, leaves([inputs[i] for i in learned]), fast_mode=True)


@each_way_under_each_mask
def test_gradients_under_masks_and_of_masks_pass_gradcheck(loss: Loss, impl: str, form: str) -> None:
    inputs = leaves(operands(seed=3, d_s=2, d_t=1))
    assert gradcheck(lambda *qk, **masks: loss(*qk, impl=impl, **masks), inputs, some_masks(form), fast=True)


@pytest.mark.parametrize("form", [None, *FORMS])
def test_gradients_of_the_class_tokens_loss_pass_gradcheck(form: str | None) -> None:
    inputs = leaves(operands(seed=3, d_s=2))
    assert gradcheck(class_row, inputs, some_masks(form) if form else (None, None))


@each_way_under_each_mask
def test_values_under_masks_match_loops(loss: Loss, impl: str, form: str) -> None:
    inputs, masks = operands(seed=4, d_t=2), some_masks(form)
    actual = loss(*inputs, mask_s=masks[0], mask_t=masks[1], impl=impl).detach()
    np.testing.assert_allclose(actual, naive(loss, inputs, (None, None), masks), rtol=1e-10, atol=1e-14)


# What masks mean.


@each_loss
@pytest.mark.parametrize("additive", [False, True])
def test_a_key_masked_on_both_sides_counts_as_if_it_were_not_there(loss: Loss, additive: bool) -> None:
    q_s, k_s, q_t, k_t = (tensor.float().requires_grad_() for tensor in operands(seed=3))
    mask = torch.tensor([True, True, False, True]).expand(1, 1, 3, 4)
    if additive:
        mask = torch.zeros(1, 1, 3, 4).masked_fill(~mask, -math.inf)
    value = loss(q_s, k_s, q_t, k_t, mask_s=mask, mask_t=mask)
    left = [0, 1, 3]
    torch.testing.assert_close(value, loss(q_s, k_s[:, :, left], q_t, k_t[:, :, left]))
    gradients = torch.autograd.grad(value.sum(), [q_s, k_s])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert torch.equal(gradients[1][:, :, 2], torch.zeros(2, 2, 3))


@pytest.mark.parametrize("loss", [attention_cross_entropy, attention_kl])
def test_a_key_the_teacher_masks_costs_the_student_nothing_but_its_own_weight(loss: Loss) -> None:
    q_s, k_s, q_t, k_t = operands(seed=4)
    mask_t = torch.tensor([True, True, False, True]).expand(1, 1, 3, 4)
    value = loss(q_s, k_s, q_t, k_t, mask_t=mask_t)
    # The student's own softmax still runs over all four keys.
    log_p_s = (q_s @ k_s.mT * 3**-0.5).log_softmax(-1)[..., [0, 1, 3]]
    log_p_t = (q_t @ k_t.mT * 3**-0.5)[..., [0, 1, 3]].log_softmax(-1)
    expected = -(log_p_t.exp() * log_p_s).sum(-1)
    if loss is attention_kl:
        expected = expected + (log_p_t.exp() * log_p_t).sum(-1)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_a_key_the_student_masks_but_the_teacher_uses_costs_infinitely_much_without_nan(impl: str) -> None:
    q_s, k_s, q_t, k_t = leaves(operands(), teacher=False)
    mask = torch.tensor([True, False, True, True])
    for loss in FUSED:
        value = loss(q_s, k_s, q_t, k_t, mask_s=mask, impl=impl)
        assert (value == math.inf).all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), [q_s, k_s]))


@pytest.mark.parametrize("additive", [False, True], ids=["boolean", "additive"])
@pytest.mark.parametrize(
    ("loss", "impl", "sides"),
    [(*way, side) for way in UNFUSED_WAYS for side in ["both"] + ["student", "teacher"] * (way[0] is not logit_l2)],
    ids=_name,
)
def test_a_row_without_keys_is_zero_and_gives_no_gradient(loss: Loss, impl: str, sides: str, additive: bool) -> None:
    inputs = leaves(operands(seed=5))
    alive = torch.tensor([True, False, True])
    mask = alive[:, None].expand(3, 4)
    if additive:
        mask = torch.zeros(3, 4).double().masked_fill(~mask, -math.inf).requires_grad_()
    masks = {f"mask_{side[0]}": mask for side in ("student", "teacher") if sides in (side, "both")}
    value = loss(*inputs, **masks, impl=impl)
    assert torch.equal(value[:, :, 1], torch.zeros(2, 2).double())
    torch.testing.assert_close(value[:, :, alive], loss(*inputs, impl=impl)[:, :, alive])
    gradients = torch.autograd.grad(value.sum(), [*inputs, mask] if additive else inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    for gradient in (gradients[0], gradients[2]):
        assert torch.equal(gradient[:, :, 1], torch.zeros_like(gradient[:, :, 1]))
    if additive:
        assert torch.equal(gradients[4][1], torch.zeros(4).double())


@pytest.mark.parametrize("loss", [logit_l2, class_row], ids=_name)
def test_logits_of_a_row_without_keys_on_one_side_are_zero_too(loss: Loss) -> None:
    inputs = leaves(operands())
    mask = torch.zeros(3, 4).double()
    mask[0] = -math.inf
    value, gradients = value_and_gradients(lambda *qk: loss(*qk, mask_t=mask), inputs)
    dead = value if loss is class_row else value[:, :, 0]
    assert torch.equal(dead, torch.zeros_like(dead))
    assert all(gradient.isfinite().all() for gradient in gradients)


# Extremes.


@each_way
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_logits_of_ten_thousand_neither_overflow_nor_lose_the_row(loss: Loss, impl: str, dtype: torch.dtype) -> None:
    """Rows at which one side is one-hot or uniform and the other one-hot elsewhere, the same or uniform."""
    q_s = torch.tensor([100.0, -100.0, 0.0, 100.0]).reshape(1, 1, 4, 1)
    q_t = torch.tensor([-100.0, -100.0, 100.0, 0.0]).reshape(1, 1, 4, 1)
    k = torch.tensor([100.0, -100.0, 0.0]).reshape(1, 1, 3, 1)
    inputs = leaves([x.to(dtype) for x in (q_s, k, q_t, k)])
    value, gradients = value_and_gradients(lambda *qk: loss(*qk, impl=impl), inputs)
    expected = naive(loss, inputs, (None, None), (None, None))
    # Weights are 0, 1 or equal; a distance in nats is rounded as the logits are, and theirs as their squares.
    scales: dict[Loss, float] = {attention_cross_entropy: 2e4, attention_kl: 2e4, logit_l2: 4e8}
    largest = scales.get(loss, 1.0)
    assert np.abs(value.double().numpy() - expected).max() <= 4 * torch.finfo(dtype).eps * largest
    assert all(gradient.isfinite().all() for gradient in gradients)


@each_way
def test_a_teacher_of_one_key_or_of_all_alike(loss: Loss, impl: str) -> None:
    """The student gives four keys (1, 1, 1, 5) eighths; the teacher everything to the last, then the same to all."""
    ones = torch.ones(1, 1, 2, 1).double()
    k_s = torch.tensor([0.0, 0.0, 0.0, math.log(5)], dtype=torch.float64).reshape(1, 1, 4, 1)
    k_t = torch.tensor([0.0, 0.0, 0.0, 5000.0], dtype=torch.float64).reshape(1, 1, 4, 1)
    teacher = torch.tensor([1.0, 0.0], dtype=torch.float64).reshape(1, 1, 2, 1)
    student = np.array([1, 1, 1, 5]) / 8
    js = [(math.log(16 / 13) + 0.375 * math.log(2) + 0.625 * math.log(10 / 13)) / 2]
    js.append(sum(scipy.special.rel_entr(p, (student + 0.25) / 2).sum() for p in (student, np.full(4, 0.25))) / 2)
    expected: dict[Loss, list[float]] = {
        attention_cross_entropy: [math.log(8 / 5), math.log(8) - math.log(5) / 4],
        attention_kl: [math.log(8 / 5), math.log(8) - math.log(5) / 4 - math.log(4)],
        attention_js: js,
        attention_mse: [12 / 64, (1 + 1 + 1 + 9) / 64],
        logit_l2: [(5000 - math.log(5)) ** 2, math.log(5) ** 2],
    }
    value = loss(ones, k_s, teacher, k_t, impl=impl)[0, 0]
    assert value.tolist() == pytest.approx(expected[loss], rel=1e-11)


@settings(deadline=None, max_examples=50)
@given(seed=SEED, spread=st.sampled_from([0.1, 1.0, 10.0, 1000.0]), way=st.sampled_from(WAYS))
def test_distances_of_maps_stay_in_their_range_and_are_zero_where_the_maps_agree(
    seed: int, spread: float, way: tuple[Loss, Any]
) -> None:
    loss, impl = way
    inputs = [tensor * spread for tensor in operands(seed)]
    q_t, k_t = inputs[2:]
    rounding = 1e-14 * spread**2 + 1e-14
    if loss is attention_cross_entropy:
        entropy = loss(q_t, k_t, q_t, k_t, impl=impl)
        assert (loss(*inputs, impl=impl) >= entropy - rounding).all()
        return
    value = loss(*inputs, impl=impl)
    limits: dict[Loss, float] = {attention_js: math.log(2), attention_mse: 2.0}
    assert (value >= -rounding).all()
    assert (value <= limits.get(loss, math.inf) + rounding).all()
    # A constant added to a row of logits changes the logits but not the map; fused kernels take no masks.
    bias = torch.zeros(1) if loss is logit_l2 else torch.full((1, 1, 3, 4), 2.5)
    masks = {} if impl == "flash" else {"mask_s": bias.double()}
    same = loss(q_t, k_t, q_t, k_t, **masks, impl=impl)
    torch.testing.assert_close(same, torch.zeros_like(same), atol=rounding, rtol=0)


@settings(deadline=None, max_examples=50)
@given(seed=SEED, impl=st.sampled_from(["reference", "chunked"]))
def test_symmetric_distances_do_not_mind_which_side_is_which(seed: int, impl: Any) -> None:
    q_s, k_s, q_t, k_t = operands(seed, d_t=2)
    for loss in (attention_js, attention_mse, logit_l2):
        torch.testing.assert_close(loss(q_s, k_s, q_t, k_t, impl=impl), loss(q_t, k_t, q_s, k_s, impl=impl))


@settings(deadline=None, max_examples=50)
@given(seed=SEED, impl=st.sampled_from(["reference", "chunked", "flash"]))
def test_kl_and_cross_entropy_have_the_same_gradient_for_the_student(seed: int, impl: Any) -> None:
    inputs = leaves(operands(seed), teacher=False)
    _, kl = value_and_gradients(lambda *qk: attention_kl(*qk, impl=impl), inputs)
    _, cross_entropy = value_and_gradients(lambda *qk: attention_cross_entropy(*qk, impl=impl), inputs)
    torch.testing.assert_close(kl, cross_entropy)
    assert kl[0].abs().max() > 0


# Refusals.


@pytest.mark.parametrize(("loss", "which"), [*((loss, which) for loss in ROWS for which in (0, 1)), (class_row, 1)])
def test_other_numbers_of_tokens_on_the_two_sides_are_refused(loss: Loss, which: int) -> None:
    inputs = operands()
    inputs[which] = inputs[which][:, :, 1:]
    with pytest.raises(ValueError, match="must share batch, heads and tokens"):
        loss(*inputs)


def test_a_refusal_names_the_shapes_of_the_student_first() -> None:
    q_s, k_s, q_t, k_t = operands()
    named = r"q is \(2, 2, 3, 3\) against \(2, 2, 2, 3\) and k is \(2, 2, 4, 3\) against \(2, 2, 4, 3\)"
    with pytest.raises(ValueError, match=named):
        attention_mse(q_s, k_s, q_t[:, :, 1:], k_t)
    with pytest.raises(ValueError, match=named):
        distilled_attention(q_s, k_s, k_s, q_t[:, :, 1:], k_t)


@each_loss
def test_other_heads_are_refused_and_not_broadcast(loss: Loss) -> None:
    q_s, k_s, q_t, k_t = operands()
    with pytest.raises(ValueError, match="must share batch, heads and tokens"):
        loss(q_s, k_s, q_t[:, :1], k_t[:, :1])


# Where a training loop puts them.


@each_way
def test_the_same_tensors_give_the_same_bits(loss: Loss, impl: str) -> None:
    inputs = leaves([x.float() for x in operands(seed=6, n=37, m=41)])
    value, gradients = value_and_gradients(lambda *qk: loss(*qk, impl=impl), inputs)
    again, gradients_again = value_and_gradients(lambda *qk: loss(*qk, impl=impl), inputs)
    assert torch.equal(value, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))


@each_way
def test_no_gradient_mode_changes_no_bit(loss: Loss, impl: str) -> None:
    inputs = leaves(operands(seed=6))
    with torch.no_grad():
        quiet = loss(*inputs, impl=impl)
    with torch.inference_mode():
        inferred = loss(*inputs, impl=impl)
    assert torch.equal(quiet, loss(*inputs, impl=impl).detach())
    assert torch.equal(quiet, inferred)
    assert not quiet.requires_grad


@pytest.mark.parametrize(
    ("loss", "impl"),
    [
        way
        if way in {(attention_js, "chunked"), (logit_l2, "reference")} or way[1] == "flash"
        else pytest.param(*way, marks=pytest.mark.long)
        for way in WAYS
    ],
    ids=_name,
)
def test_compiles_as_one_graph(loss: Loss, impl: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda *qk: loss(*qk, impl=impl), backend="aot_eager", fullgraph=True)
    for teacher in (False, True) if impl == "flash" else (True,):
        inputs = leaves(operands(seed=7, d_t=2), teacher)
        torch.testing.assert_close(
            value_and_gradients(compiled, inputs), value_and_gradients(lambda *qk: loss(*qk, impl=impl), inputs)
        )


@each_way
def test_gradient_checkpointing_changes_no_bit(loss: Loss, impl: str) -> None:
    inputs = leaves(operands(seed=8))
    value, gradients = value_and_gradients(lambda *qk: loss(*qk, impl=impl), inputs)

    def recomputed(*qk: Tensor) -> Tensor:
        result: Tensor = checkpoint(lambda *x: loss(*x, impl=impl), *qk, use_reentrant=False)
        return result

    value_again, gradients_again = value_and_gradients(recomputed, inputs)
    assert torch.equal(value, value_again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))


@each_way
def test_autocast_stays_within_its_rounding(loss: Loss, impl: str) -> None:
    inputs = leaves([x.float() for x in operands(seed=9, n=5, m=6)])
    expected = naive(loss, inputs, (None, None), (None, None))
    _, exact = value_and_gradients(lambda *qk: loss(*qk, impl="reference"), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradients = value_and_gradients(lambda *qk: loss(*qk, impl=impl), inputs)
    error = np.abs(value.double().numpy() - expected)
    assert (error <= budget(loss, inputs, torch.bfloat16, expected)).all()
    for gradient, true in zip(gradients, exact, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - true).norm() < 0.05 * true.norm()


@pytest.mark.parametrize("loss", FUSED, ids=_name)
def test_half_precision_operands_give_the_same_dtype_in_every_way(loss: Loss) -> None:
    inputs = [x.bfloat16() for x in operands()]
    assert len({loss(*inputs, impl=impl).dtype for impl in ("reference", "chunked", "flash")}) == 1


@each_way
def test_a_teacher_of_another_dtype_is_taken_as_it_is(loss: Loss, impl: str) -> None:
    inputs = [x.to(dtype) for x, dtype in zip(operands(), [torch.float64] * 2 + [torch.float32] * 2, strict=True)]
    value = loss(*inputs, impl=impl)
    assert value.dtype == torch.float64
    expected = naive(loss, inputs, (None, None), (None, None))
    assert (np.abs(value.numpy() - expected) <= budget(loss, inputs, torch.float32, expected)).all()


# The distance of what the heads read.


@pytest.mark.parametrize("form", [None, "boolean on both", "additive on the student", "a dead row of the student"])
def test_distance_of_outputs_matches_the_maps_times_the_values(form: str | None) -> None:
    q_s, k_s, q_t, k_t = operands(seed=10, d_t=2)
    v_s, v_t = torch.randn(2, 2, 2, 4, 3).double()
    masks = some_masks(form) if form else (None, None)
    sides = [(q_s, k_s, v_s, masks[0]), (q_t, k_t, v_t, masks[1])]
    reads = []
    for q, k, v, mask in sides:
        logits = naive_logits(q.numpy(), k.numpy(), None, mask)
        alive = np.isfinite(logits).any(-1, keepdims=True)
        maps = np.where(alive, scipy.special.softmax(np.where(alive, logits, 0.0), axis=-1), 0.0)
        reads.append(maps @ v.numpy())
    value = output_l2(q_s, k_s, v_s, q_t, k_t, v_t, mask_s=masks[0], mask_t=masks[1])
    np.testing.assert_allclose(value.detach(), ((reads[0] - reads[1]) ** 2).sum(-1), rtol=1e-10)


def test_gradients_of_the_distance_of_outputs_pass_gradcheck() -> None:
    q_s, k_s, q_t, k_t = operands(seed=10, d_t=2, b=1)
    values = torch.randn(2, 1, 2, 4, 3).double()
    inputs = leaves([q_s, k_s, values[0], q_t, k_t, values[1]])
    assert torch.autograd.gradcheck(lambda *x: output_l2(*x, scale_s=0.3, scale_t=1.2), inputs)


def test_outputs_of_other_widths_are_refused() -> None:
    q_s, k_s, q_t, k_t = operands()
    v = torch.randn(2, 2, 4, 3).double()
    with pytest.raises(ValueError, match="values must have one shape"):
        output_l2(q_s, k_s, v, q_t, k_t, v[..., :2])
