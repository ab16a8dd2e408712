"""Attention and its mean cross-entropy in one: gradients that are formed in the forward pass."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attention_transfer.attention import distilled_attention, flash
from attention_transfer.attention import operands as records
from attention_transfer.errors import UserError

SIZE = st.integers(1, 6)


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def operands(n: int = 4, m: int = 5, d_s: int = 3, d_t: int = 2, e: int = 3, batch: int = 2) -> list[Tensor]:
    """q_s, k_s, v_s with gradients, and a constant q_t, k_t; two heads."""
    shapes = [(n, d_s), (m, d_s), (m, e), (n, d_t), (m, d_t)]
    return [randn(batch, 2, *shape, seed=i).requires_grad_(i < 3) for i, shape in enumerate(shapes)]


def results(inputs: list[Tensor], impl: Any, *, reduction: Any = "mean", **options: Any) -> tuple[Tensor, ...]:
    """Output, mean loss, and the gradients of both together."""
    out, ce = distilled_attention(*inputs, impl=impl, reduction=reduction, **options)
    ce = ce if reduction == "mean" else ce.mean()
    weights = randn(*out.shape, seed=9).to(out)
    gradients = torch.autograd.grad((out * weights).sum() + 3 * ce, inputs[:3])
    return out, ce, *gradients


@pytest.mark.parametrize("impl", ["reference", "chunked", "flash"])
@pytest.mark.parametrize(("d_s", "e"), [(3, 3), (2, 5), (5, 2)])
def test_gradients_pass_gradcheck(impl: Any, d_s: int, e: int) -> None:
    inputs = operands(d_s=d_s, e=e)

    def run(*student: Tensor) -> tuple[Tensor, Tensor]:
        return distilled_attention(*student, *inputs[3:], scale_s=0.7, scale_t=1.3, impl=impl, reduction="mean")

    assert torch.autograd.gradcheck(run, inputs[:3])


@settings(deadline=None, max_examples=40)
@given(batch=SIZE, n=SIZE, m=SIZE, d_s=SIZE, d_t=SIZE, e=SIZE, tile=st.sampled_from([1, 8, 1 << 20]))
def test_the_mean_is_that_of_the_rows(batch: int, n: int, m: int, d_s: int, d_t: int, e: int, tile: int) -> None:
    inputs = operands(n, m, d_s, d_t, e, batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(records._TILE, "cpu", tile)
        found = results(inputs, "flash")
    torch.testing.assert_close(found, results(inputs, "reference", reduction="none"))


def test_many_tiles_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 rows in tiles of 32, of which the last is not full."""
    inputs = operands(n=100, m=7)
    monkeypatch.setitem(records._TILE, "cpu", 1)
    torch.testing.assert_close(results(inputs, "flash"), results(inputs, "reference"))


class Softmaxes(TorchFunctionMode):
    """Notes the shapes of the maps that are formed."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.softmax:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("n", "elements", "rows"),
    [(100, 1, [32, 32, 32, 4]), (32, 1, [32]), (7, 1, [7]), (100, 40 * 2 * 7, [80, 20])],
)
def test_maps_are_formed_a_tile_of_one_image_at_a_time(
    n: int, elements: int, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice what fits, and 32 rows at least."""
    monkeypatch.setitem(records._TILE, "cpu", elements)
    q_s, k_s, _, q_t, k_t = (x.detach() for x in operands(n=n, m=7))
    with Softmaxes() as formed:
        flash._both_ways(q_t, k_t, q_s, k_s, 0.3)
    assert formed.shapes == [(2, size, 7) for size in rows] * 2  # images


@pytest.mark.parametrize("n", [100, 7])
def test_no_memory_is_read_before_it_is_written(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(records._TILE, "cpu", 1)
    inputs = operands(n=n, m=7)
    expected = results(inputs, "reference")
    torch.use_deterministic_algorithms(True)  # new memory is filled with NaN
    try:
        found = results(inputs, "flash")
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("teacher", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_teachers_part_is_the_same_by_tiles_and_by_fused_kernels(
    teacher: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a graph is compiled, tiles would be unrolled."""
    q_s, k_s, _, q_t, k_t = (x.detach().to(torch.bfloat16 if i < 3 else teacher) for i, x in enumerate(operands()))
    exact = flash._both_ways(q_t.double(), k_t.double(), q_s.double(), k_s.double(), 0.3)
    by_tiles = flash._both_ways(q_t, k_t, q_s, k_s, 0.3)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    by_kernels = flash._both_ways(q_t, k_t, q_s, k_s, 0.3)
    for found in (*by_tiles, *by_kernels):
        assert found.dtype == torch.bfloat16
    torch.testing.assert_close([x.double() for x in by_tiles], [*exact], rtol=0.02, atol=0.02)
    torch.testing.assert_close([x.double() for x in by_kernels], [*exact], rtol=0.02, atol=0.02)


def test_the_detour_by_a_further_column_is_for_short_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    by_a_column = flash._by_a_column

    def noting(*arguments: Any) -> Any:
        taken.append(arguments[2].shape[-1])
        return by_a_column(*arguments)

    monkeypatch.setattr(flash, "_by_a_column", noting)
    out, ce = distilled_attention(*operands(), impl="flash", reduction="mean")
    (out.sum() + ce).backward()
    assert taken == []
    out, ce = distilled_attention(*operands(), impl="flash", reduction="mean")
    (out[:, :, 0].sum() + ce).backward()
    assert taken == [3]


def test_rows_without_a_gradient_of_the_output_learn_from_the_loss_all_the_same() -> None:
    """As in the last block of a network that reads the class token alone."""
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for impl, kept in (("flash", found), ("reference", expected)):
        inputs = operands()
        out, ce = distilled_attention(*inputs, impl=impl, reduction="mean")  # type: ignore[arg-type]
        kept.extend(torch.autograd.grad(out[:, :, 0].sum() + ce, inputs[:3]))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e12])
def test_gradients_of_any_size_meet_that_of_the_loss(size: float) -> None:
    inputs = [x.detach().float().requires_grad_(i < 3) for i, x in enumerate(operands())]
    exact = operands()
    gradients = []
    for group, impl in ((inputs, "flash"), (exact, "reference")):
        out, ce = distilled_attention(*group, impl=impl, reduction="mean")  # type: ignore[arg-type]
        gradients.append(torch.autograd.grad((out * size).sum() + ce, group[:3]))
    for found, expected in zip(*gradients, strict=True):
        assert (found.double() - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("spread", [1.0, 8.0, 30.0, 200.0])
def test_log_sum_exps_may_lie_far_apart(spread: float) -> None:
    q = randn(1, 2, 9, 4, seed=0, dtype=torch.float32)
    q[:, :, 0] *= spread
    k, x = randn(1, 2, 7, 4, seed=1, dtype=torch.float32), randn(1, 2, 7, 4, seed=2, dtype=torch.float32)
    k[:, :, 0] = q[:, :, 0]
    values, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    weights = randn(1, 2, 9, 4, seed=3)
    (found,) = torch.autograd.grad((flash.attend_frozen(q, k, values, scale=0.5) * weights.float()).sum(), values)
    logits = q.double() @ k.double().mT * 0.5
    (expected,) = torch.autograd.grad(((logits.softmax(-1) @ exact) * weights).sum(), exact)
    # A probability is exp(logit - log-sum-exp), and float32 rounds a logit of 150,000 to a multiple of 0.016, in a
    # way of each processor's own.
    rounding = 1e-5 + torch.finfo(torch.float32).eps * logits.abs().max().item()
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=rounding)


def test_nothing_of_the_teacher_is_kept() -> None:
    inputs = operands()
    kept = [weakref.ref(x) for x in inputs[3:]]
    out, ce = distilled_attention(*inputs, impl="flash", reduction="mean")
    del inputs[3:]
    assert [reference() for reference in kept] == [None, None]
    (out.sum() + ce).backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_teacher_of_another_precision(dtype: torch.dtype) -> None:
    inputs = [x.detach().to(torch.bfloat16 if i < 3 else dtype) for i, x in enumerate(operands())]
    student = [x.requires_grad_() for x in inputs[:3]]
    out, ce = distilled_attention(*student, *inputs[3:], impl="flash", reduction="mean")
    exact = [x.detach().double() for x in inputs]
    expected = distilled_attention(*exact, impl="reference", reduction="mean")
    assert (out.dtype, ce.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(out.double(), expected[0], rtol=0.02, atol=0.02)
    torch.testing.assert_close(ce.double(), expected[1], rtol=0.02, atol=0.02)
    assert all(x.grad is None or x.grad.dtype == torch.bfloat16 for x in student)
    gradients = torch.autograd.grad(out.float().sum() + ce, student)
    assert all(g.dtype == torch.bfloat16 and bool(g.isfinite().all()) for g in gradients)


def test_a_teacher_that_learns_gets_its_gradient() -> None:
    inputs = [x.detach().requires_grad_() for x in operands()]
    found = torch.autograd.grad(distilled_attention(*inputs, impl="flash", reduction="mean")[1], inputs[3:])
    expected = torch.autograd.grad(distilled_attention(*inputs, impl="reference", reduction="mean")[1], inputs[3:])
    torch.testing.assert_close(found, expected)


def test_it_compiles_as_one_graph() -> None:
    inputs = [x.detach().float().requires_grad_(i < 3) for i, x in enumerate(operands())]
    compiled: Any = torch.compile(
        lambda *x: distilled_attention(*x, impl="flash", reduction="mean"), backend="aot_eager", fullgraph=True
    )
    out, ce = compiled(*inputs)
    gradients = torch.autograd.grad((out * randn(*out.shape, seed=9).float()).sum() + 3 * ce, inputs[:3])
    for found, expected in zip((out, ce, *gradients), results(inputs, "reference"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("read", ["all rows", "the first row"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_half_precision_are_as_good_as_those_of_maps(dtype: torch.dtype, size: float, read: str) -> None:
    """Against float64, beside maps that are formed in float32 of the same rounded operands.

    Rows that nothing reads have no gradient to carry that of the loss, as in the last block of a network that reads the
    class token alone.
    """
    rounded = [x.detach().to(dtype) for x in operands(n=33, m=35, d_s=16, d_t=12, e=16)]
    kept = slice(None) if read == "all rows" else slice(0, 1)
    weights = size * randn(2, 2, 33, 16, seed=9)[:, :, kept]

    def gradients(wide: torch.dtype, impl: Any) -> list[Tensor]:
        inputs = [x.to(wide).requires_grad_(i < 3) for i, x in enumerate(rounded)]
        out, ce = distilled_attention(*inputs, impl=impl, reduction="mean")
        total = (out[:, :, kept].double() * weights).sum() + 300 * ce.double()
        return [x.double() for x in torch.autograd.grad(total, inputs[:3])]

    exact = gradients(torch.float64, "reference")
    for true, found, formed in zip(exact, gradients(dtype, "flash"), gradients(dtype, "reference"), strict=True):
        size_of = max(float(true.norm()), 1e-6)
        least = torch.finfo(dtype).eps
        assert (found - true).norm() / size_of <= 3 * (formed - true).norm() / size_of + 2 * least


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_without_a_gradient_get_one_where_nobody_may_look(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, by the CPU's kernels: what is made up stays below the rounding of what the loss adds."""
    monkeypatch.setattr(flash, "_carries", lambda d_out, d_lse: True)
    rounded = [x.detach().to(dtype) for x in operands(n=65, m=35, d_s=16, d_t=12, e=16)]

    def gradients(wide: torch.dtype, impl: Any) -> list[Tensor]:
        inputs = [x.to(wide).requires_grad_(i < 3) for i, x in enumerate(rounded)]
        out, ce = distilled_attention(*inputs, impl=impl, reduction="mean")
        return [x.double() for x in torch.autograd.grad(out[:, :, 0].double().sum() + 500 * ce.double(), inputs[:3])]

    exact = gradients(torch.float64, "reference")
    largest = max(float(true.norm()) for true in exact)
    for true, found in zip(exact, gradients(dtype, "flash"), strict=True):
        assert (found - true).norm() <= 8 * torch.finfo(dtype).eps * largest


def test_gradients_that_are_made_up_lie_in_other_columns_and_change_sign() -> None:
    rows = [[1, 0], [0, 1], [-1, 0], [0, -1], [1, 0]]
    assert flash._one_each(torch.empty(3, 5, 2)).tolist() == rows


def test_another_reduction_is_refused() -> None:
    with pytest.raises(UserError, match='no reduction=\'sum\'; choose "none" or "mean"'):
        distilled_attention(*operands(), reduction="sum")  # type: ignore[arg-type]
