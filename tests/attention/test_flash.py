"""Attention, losses and both in one from fused kernels: against PyTorch's own attention, and finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from attention_transfer.attention import (
    AttentionCall,
    attention_cross_entropy,
    attention_kl,
    distilled_attention,
    flash,
    frozen_attention,
    fused,
    tiles,
)
from tests.warm import Python

IMPLS = ["reference", "chunked", "flash"]
each_impl = pytest.mark.parametrize("impl", IMPLS)
SIZE = st.integers(1, 6)
sdpa: Callable[..., Tensor] = F.scaled_dot_product_attention


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def operands(d_s: int = 3, d_t: int = 2, n: int = 4, m: int = 5, e: int | None = None, seed: int = 0) -> list[Tensor]:
    """q_s, k_s, v_s, q_t, k_t in float64: 2 images, 2 heads."""
    shapes = [(n, d_s), (m, d_s), (m, d_s if e is None else e), (n, d_t), (m, d_t)]
    return [randn(2, 2, *shape, seed=seed + i) for i, shape in enumerate(shapes)]


def leaves(tensors: Sequence[Tensor], constant: int = 0) -> list[Tensor]:
    """Copies that need a gradient, but for the last few."""
    live = len(tensors) - constant
    return [x.detach().clone().requires_grad_(i < live) for i, x in enumerate(tensors)]


def gradients(results: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    weights = [randn(*x.shape, seed=50 + i).to(x.dtype) for i, x in enumerate(results)]
    return torch.autograd.grad(list(results), [x for x in inputs if x.requires_grad], weights)


# The operators.


@pytest.mark.parametrize(("d", "e"), [(3, 3), (2, 5), (5, 2), (1, 1)])
def test_attention_with_its_log_sum_exp(d: int, e: int) -> None:
    inputs = leaves(operands(d_s=d, e=e)[:3])
    out, lse = flash.attend(*inputs, scale=0.7)
    logits = inputs[0] @ inputs[1].mT * 0.7
    expected = (sdpa(*inputs, scale=0.7), logits.logsumexp(-1))
    torch.testing.assert_close((out, lse), expected)
    torch.testing.assert_close(gradients((out, lse), inputs), gradients(expected, inputs))
    assert torch.autograd.gradcheck(lambda *x: flash.attend(*x, scale=0.7), inputs)


def test_the_log_sum_exp_has_its_gradient_where_the_output_has_none() -> None:
    """As at the last block, of whose rows only the class token's is read: nothing is divided by a gradient of 0."""
    inputs = leaves(operands()[:3])
    out, lse = flash.attend(*inputs, scale=0.7)
    whole = (inputs[0] @ inputs[1].mT * 0.7).logsumexp(-1)
    first = sdpa(*inputs, scale=0.7)[:, :, 0]
    torch.testing.assert_close(
        torch.autograd.grad(out[:, :, 0].sum() + lse.sum(), inputs, retain_graph=True),
        torch.autograd.grad(first.sum() + whole.sum(), inputs, retain_graph=True),
    )
    alone = torch.autograd.grad(lse.sum(), inputs)
    torch.testing.assert_close(alone[:2], torch.autograd.grad(whole.sum(), inputs[:2]))
    assert torch.equal(alone[2], torch.zeros_like(alone[2]))  # no trace of the kernel's detour in the values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [0.125, 0.3])
def test_a_bias_of_keys_keeps_the_digits_of_float32(dtype: torch.dtype, scale: float) -> None:
    """Log-sum-exps come in as columns of queries and keys: rounded to 16 bits they would be errors in all weights."""
    q, k, x = (randn(1, 2, 9, 16, dtype=dtype, seed=i) for i in range(3))
    bias = 30 * randn(1, 2, 9, dtype=torch.float32, seed=3)
    found, lse = fused.averaged(q, k, x, scale=scale, key_bias=bias)
    logits = q.double() @ k.double().mT * scale + bias.double()[..., None, :]
    torch.testing.assert_close(lse.double(), logits.logsumexp(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.double(), logits.softmax(-1) @ x.double(), rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_a_bias_of_keys_takes_no_more_columns_than_its_digits_need() -> None:
    for dtype, columns in ((torch.float64, 1), (torch.float32, 1), (torch.bfloat16, 3), (torch.float16, 3)):
        q, k = (randn(1, 2, 9, 16, dtype=dtype, seed=i) for i in range(2))
        widened = fused._with_bias(q, k, randn(1, 2, 9, dtype=torch.float32, seed=2), 0.3)
        assert [x.shape[-1] for x in widened] == [16 + columns] * 2


def test_operands_with_a_dense_last_dimension_are_taken_where_they_lie() -> None:
    """As models lay them out, heads side by side; only what is narrower than another, or turned, is copied."""
    q, k, v = randn(2, 4, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind()
    narrow, turned = randn(2, 2, 4, 5), randn(2, 2, 6, 4).mT
    found = fused.widened(q, k, v, narrow, turned)
    assert [x.data_ptr() == y.data_ptr() for x, y in zip(found, (q, k, v, narrow, turned), strict=True)] == [
        *[True] * 3,
        *[False] * 2,
    ]
    assert {x.stride(-1) for x in found} == {1}
    torch.testing.assert_close(found[3], torch.cat([narrow, torch.zeros(2, 2, 4, 1).double()], dim=-1))
    torch.testing.assert_close(found[4], turned)


def test_the_log_sum_exp_of_half_precision_is_wide() -> None:
    q, k, v = (x.bfloat16() for x in operands()[:3])
    out, lse = flash.attend(q, k, v, scale=0.7)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("e", [1, 3, 7])
@pytest.mark.parametrize("scale", [-0.6, 1e-3, 3.0])
def test_attention_by_constants(e: int, scale: float) -> None:
    q, k, x = operands(e=e)[:3]
    x.requires_grad_()
    out = flash.attend_frozen(q, k, x, scale=scale)
    expected = sdpa(q, k, x, scale=scale)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients([out], [x]), gradients([expected], [x]))
    assert torch.autograd.gradcheck(partial(flash.attend_frozen, q, k, scale=scale), [x])


def test_attention_by_constants_has_a_second_derivative() -> None:
    """It is linear in x, so that its square has one."""
    q, k, x = operands()[:3]
    inputs = [x.requires_grad_()]
    assert torch.autograd.gradgradcheck(lambda x: flash.attend_frozen(q, k, x, scale=0.5).square(), inputs)


@pytest.mark.parametrize("scale", [None, 0.2])
def test_entropy_is_scipys(scale: float | None) -> None:
    q, k = operands()[:2]
    maps = scipy.special.softmax((q @ k.mT * (3**-0.5 if scale is None else scale)).numpy(), axis=-1)
    np.testing.assert_allclose(flash.entropy(AttentionCall.of(q, k, scale, None)), scipy.stats.entropy(maps, axis=-1))


def test_second_derivatives_are_refused_and_not_wrong() -> None:
    inputs = leaves(operands()[:2])
    q_t, k_t = operands()[3:]
    value = attention_cross_entropy(inputs[0], inputs[1], q_t, k_t, impl="flash")
    first = torch.autograd.grad(value.sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(first[0].square().sum(), inputs)


def test_operands_as_models_lay_them_out() -> None:
    """Rows of all heads side by side, slices of one projection of all three, and heads that share their keys."""
    q, k, v = randn(2, 4, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind()
    q_t = randn(2, 2, 4, 12)[..., ::2]
    k_t = randn(2, 1, 4, 6, seed=1).expand(2, 2, 4, 6)
    for laid_out in ([q, k, v, q_t, k_t], [q_t, k_t, v, q, k], [k_t, q, q_t, k, v]):
        inputs = [x.detach().requires_grad_() for x in laid_out]
        found = distilled_attention(*inputs, impl="flash")
        whole = leaves([x.contiguous() for x in laid_out])
        expected = distilled_attention(*whole, impl="reference")
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradients(found, inputs), gradients(expected, whole))


@pytest.mark.parametrize(
    "turned",
    [0, 1, 2, 3, 4],
    ids=["q_s", "k_s", "v_s", "q_t", "k_t"],
)
def test_operands_laid_out_column_by_column(turned: int) -> None:
    """(B, H, D, N) turned round, as in models that keep channels first."""
    whole = leaves([randn(2, 2, 4, 6, seed=i) for i in range(5)], constant=2)
    inputs = leaves(whole, constant=2)
    inputs[turned] = whole[turned].detach().mT.contiguous().mT.requires_grad_(turned < 3)
    found = distilled_attention(*inputs, impl="flash")
    expected = distilled_attention(*whole, impl="reference")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, inputs), gradients(expected, whole))


@pytest.mark.parametrize("turned", [0, 1], ids=["queries", "keys"])
def test_copied_operands_laid_out_column_by_column(turned: int) -> None:
    """Queries matter for the output, keys for the gradient, in which they are the ones to ask."""
    operands = [randn(2, 2, 4, 6, seed=i) for i in range(3)]
    v = operands[2].requires_grad_()
    expected = sdpa(operands[0], operands[1], v)
    operands[turned] = operands[turned].mT.contiguous().mT
    found = frozen_attention(operands[0], operands[1], v)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients([found], [v]), gradients([expected], [v]))


# Attention and loss in one.


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "tile_rows", lambda q, k: 3)


MASKS: dict[str, tuple[Tensor | None, Tensor | None]] = {
    "none": (None, None),
    "boolean": (torch.tensor([[True, True, False, True, True]]), torch.tensor([[True, True, False, True, False]])),
    "additive": (randn(2, 1, 4, 5, seed=20), randn(1, 2, 4, 5, seed=21)),
    "broadcast": (randn(4, 1, seed=22), randn(2, 1, 1, 5, seed=23)),
    "student": (randn(2, 2, 4, 5, seed=24), None),
}
UNFUSED = [(impl, masks) for impl in ("reference", "chunked") for masks in MASKS]


@pytest.mark.parametrize(("impl", "masks"), [*UNFUSED, ("flash", "none")])
@pytest.mark.parametrize("constant", [0, 2], ids=["teacher with gradient", "constant teacher"])
@pytest.mark.usefixtures("small_tiles")
def test_both_in_one_are_the_attention_and_its_loss_and_the_sum_of_their_gradients(
    impl: Any, masks: str, constant: int
) -> None:
    inputs = leaves(operands(), constant)
    q_s, k_s, v_s, q_t, k_t = inputs
    mask_s, mask_t = MASKS[masks]
    options: dict[str, Any] = {"scale_s": 0.4, "scale_t": 1.1, "mask_s": mask_s, "mask_t": mask_t}
    both = distilled_attention(*inputs, **options, impl=impl)
    apart = (
        sdpa(q_s, k_s, v_s, mask_s, scale=0.4),
        attention_cross_entropy(q_s, k_s, q_t, k_t, **options, impl="reference"),
    )
    torch.testing.assert_close(both, apart)
    torch.testing.assert_close(gradients(both, inputs), gradients(apart, inputs))


@pytest.mark.parametrize(("impl", "masks"), [*UNFUSED, ("flash", "none")])
@pytest.mark.parametrize(("d_s", "d_t", "e"), [(2, 3, 2), (2, 1, 4)])
@pytest.mark.usefixtures("small_tiles")
def test_gradients_of_both_in_one_pass_gradcheck(impl: Any, masks: str, d_s: int, d_t: int, e: int) -> None:
    inputs = leaves([x[:1] for x in operands(d_s=d_s, d_t=d_t, e=e)])
    mask_s, mask_t = (mask if mask is None or mask.dim() < 4 else mask[:1] for mask in MASKS[masks])
    learned = mask_s is not None and mask_s.is_floating_point()
    if mask_s is not None and learned:
        inputs.append(mask_s.clone().requires_grad_())

    def run(*x: Tensor) -> tuple[Tensor, Tensor]:
        return distilled_attention(
            x[0], x[1], x[2], x[3], x[4], mask_s=x[5] if learned else mask_s, mask_t=mask_t, impl=impl
        )

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@each_impl
@pytest.mark.parametrize("which", [0, 1], ids=["output", "loss"])
def test_one_of_the_two_results_may_go_unused(impl: Any, which: int) -> None:
    inputs = leaves(operands())
    both = distilled_attention(*inputs, impl=impl)
    apart = (
        sdpa(*inputs[:3]),
        attention_cross_entropy(*inputs[:2], *inputs[3:], impl="reference"),
    )
    found = torch.autograd.grad(both[which].sum(), inputs, allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(apart[which].sum(), inputs, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(found, expected)


@settings(deadline=None, max_examples=100)
@given(
    impl=st.sampled_from(IMPLS),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    sizes=st.tuples(*[SIZE] * 5),
    seed=st.integers(0, 999),
)
def test_both_in_one_are_within_the_rounding_of_their_dtype(
    impl: Any, dtype: torch.dtype, sizes: tuple[int, ...], seed: int
) -> None:
    """About eight roundings of a stored number, each relative to the logits or the values."""
    n, m, d_s, d_t, e = sizes
    inputs = [x.to(dtype) for x in operands(d_s, d_t, n, m, e, seed)]
    q_s, k_s, v_s, q_t, k_t = (x.double() for x in inputs)
    out, ce = distilled_attention(*inputs, impl=impl)
    reach = float((q_s.abs() @ k_s.abs().mT).max() * d_s**-0.5 + (q_t.abs() @ k_t.abs().mT).max() * d_t**-0.5) + m
    allowed = reach * (8 * torch.finfo(dtype).eps / 2 + (m + d_s + d_t) * min(torch.finfo(dtype).eps, 2**-23))
    assert (ce - attention_cross_entropy(q_s, k_s, q_t, k_t, impl="reference")).abs().max() <= allowed
    error = out - sdpa(q_s, k_s, v_s)
    assert error.abs().max() <= allowed * v_s.abs().max()


@each_impl
def test_both_in_one_survive_logits_of_ten_thousand(impl: Any) -> None:
    inputs = leaves([(x * (100 if i != 2 else 1)).float() for i, x in enumerate(operands())])
    both = distilled_attention(*inputs, impl=impl)
    exact = distilled_attention(*(x.detach().double() for x in inputs), impl="reference")
    largest = float(exact[1].abs().max())
    assert largest > 1e4
    torch.testing.assert_close(both[0].double(), exact[0], rtol=1e-4, atol=0.01)
    torch.testing.assert_close(both[1].double(), exact[1], rtol=0, atol=4 * 2**-23 * 2 * largest)
    assert all(gradient.isfinite().all() for gradient in gradients(both, inputs))


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_a_row_without_keys_reads_nothing_and_costs_nothing(impl: Any) -> None:
    inputs = leaves(operands())
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1] = False
    out, ce = distilled_attention(*inputs, mask_s=mask, impl=impl)
    assert not out[:, :, 1].any()
    assert not ce[:, :, 1].any()
    found = gradients((out, ce), inputs)
    assert all(gradient.isfinite().all() for gradient in found)
    assert not found[0][:, :, 1].any()


def test_other_shapes_are_refused() -> None:
    q_s, k_s, v_s, q_t, k_t = operands()
    with pytest.raises(ValueError, match="must share batch, heads and tokens"):
        distilled_attention(q_s, k_s, v_s, q_t[:, :, 1:], k_t)
    with pytest.raises(ValueError, match="must share batch, heads and tokens"):
        distilled_attention(q_s, k_s, v_s, q_t[:, :1], k_t[:, :1])


# Attention by constants, as the caller sees it.


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("e", [3, 7])
def test_copied_attention_is_pytorchs_and_so_is_its_gradient(masks: str, scale: float | None, e: int) -> None:
    q, k, v = operands(e=e)[:3]
    mask = MASKS[masks][0]
    v.requires_grad_()
    out = frozen_attention(q, k, v, scale=scale, mask=mask)
    expected = sdpa(q, k, v, mask, scale=scale)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients([out], [v]), gradients([expected], [v]))
    assert torch.autograd.gradcheck(lambda v: frozen_attention(q, k, v, scale=scale, mask=mask), [v])


@settings(deadline=None, max_examples=100)
@given(
    dtype=st.sampled_from([torch.float64, torch.float32]),
    sizes=st.tuples(*[SIZE] * 4),
    spread=st.sampled_from([0.1, 1.0, 10.0, 100.0]),
    seed=st.integers(0, 999),
)
def test_copied_attention_is_within_the_rounding_of_its_dtype(
    dtype: torch.dtype, sizes: tuple[int, ...], spread: float, seed: int
) -> None:
    """Logits of up to some 10⁴: what is rounded is the logits, twice, and the sum over rows or keys."""
    n, m, d, e = sizes
    q, k, v = (x.to(dtype) for x in operands(d, d, n, m, e, seed)[:3])
    q, k = q * spread, k * spread
    v.requires_grad_()
    out = frozen_attention(q, k, v)
    exact = v.detach().double().requires_grad_()
    expected = sdpa(q.double(), k.double(), exact)
    reach = float((q.abs() @ k.abs().mT).max()) * d**-0.5 + n + m
    allowed = torch.finfo(dtype).eps * reach * (4 + d)
    assert (out - expected).abs().max() <= allowed * exact.abs().max()
    (found,), (true,) = gradients([out], [v]), gradients([expected], [exact])
    assert (found - true).abs().max() <= allowed * n * 4


@pytest.mark.parametrize("spread", [1.0, 4.0, 16.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_half_precision_are_as_good_as_pytorchs(dtype: torch.dtype, spread: float) -> None:
    """An error in the log-sum-exp is one in the exponent of every weight."""
    q, k, v = (randn(1, 2, 64, 32, seed=i) for i in range(3))
    q, k, v = ((x * factor).to(dtype) for x, factor in ((q, spread**0.5), (k, spread**0.5), (v, 1.0)))
    errors = []
    exact = v.double().requires_grad_()
    (true,) = gradients([sdpa(q.double(), k.double(), exact)], [exact])
    for attend in (frozen_attention, sdpa):
        values = v.clone().requires_grad_()
        (found,) = gradients([attend(q, k, values)], [values])
        errors.append(float((found.double() - true).norm() / true.norm()))
    assert errors[0] <= 2 * errors[1]


def test_queries_and_keys_get_no_gradient() -> None:
    q, k, v = leaves(operands()[:3])
    found: Any = torch.autograd.grad(frozen_attention(q, k, v).sum(), [q, k], allow_unused=True)
    assert found == (None, None)


def test_values_without_gradient_make_no_graph() -> None:
    q, k, v = operands()[:3]
    assert not frozen_attention(q, k, v).requires_grad


def test_empty_tensors_do_not_end_the_process(python: Python) -> None:
    code = (
        "import torch; from attention_transfer.attention import attention_cross_entropy, frozen_attention\n"
        "for h, n, m in ((2, 0, 4), (2, 4, 0), (0, 4, 4)):\n"
        "    q, k = torch.ones(1, h, n, 8), torch.ones(1, h, m, 8)\n"
        "    assert h == 0 or frozen_attention(q, k, k).shape == q.shape\n"  # torch 2.11 divides by the number of heads
        "    assert attention_cross_entropy(q, k, q, k).shape == q.shape[:3]\n"
    )
    assert python("-c", code).returncode == 0


@pytest.mark.parametrize("images", [0, 1])
def test_a_batch_may_be_empty(images: int) -> None:
    inputs = leaves([x[:images] for x in operands()])
    out, ce = distilled_attention(*inputs, impl="flash")
    assert (out.shape, ce.shape) == ((images, 2, 4, 3), (images, 2, 4))
    assert [g.shape for g in gradients((out, ce), inputs)] == [x.shape for x in inputs]


# Where a training loop puts them.

CALLS: dict[str, Callable[..., Any]] = {
    **{f"distilled {impl}": lambda *x, impl=impl: distilled_attention(*x, impl=impl) for impl in IMPLS},
    "frozen": lambda q_s, k_s, v_s, q_t, k_t: (frozen_attention(q_t, k_t, v_s),),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))


def results_and_gradients(call: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    results = tuple(call(*inputs))
    wanted = [x for x in inputs if x.requires_grad]
    loss = torch.stack([x.float().square().sum() for x in results]).sum()
    return *(x.detach() for x in results), *torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)


@each_call
def test_the_same_tensors_give_the_same_bits(call: Callable[..., Any]) -> None:
    inputs = leaves([x.float() for x in operands(n=37, m=41)], constant=2)
    once, again = results_and_gradients(call, inputs), results_and_gradients(call, inputs)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@each_call
def test_compiles_as_one_graph(call: Callable[..., Any]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    inputs = leaves(operands(), constant=2)
    torch.testing.assert_close(results_and_gradients(compiled, inputs), results_and_gradients(call, inputs))


def test_compiles_once_for_any_number_of_tokens() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attention_kl, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (4, 9):
        q_s, k_s, _, q_t, k_t = leaves([x.float() for x in operands(n=n, m=n + 2)])
        torch.testing.assert_close(compiled(q_s, k_s, q_t, k_t), attention_kl(q_s, k_s, q_t, k_t))


@each_call
def test_gradient_checkpointing_changes_no_bit(call: Callable[..., Any]) -> None:
    inputs = leaves(operands(), constant=2)
    plain = results_and_gradients(call, inputs)
    again = results_and_gradients(lambda *x: checkpoint(call, *x, use_reentrant=False), inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@each_call
def test_autocast_stays_within_its_rounding(call: Callable[..., Any]) -> None:
    inputs = leaves([x.float() for x in operands()], constant=2)
    plain = results_and_gradients(call, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = results_and_gradients(call, inputs)
    for a, b in zip(rounded, plain, strict=True):
        assert (a.float() - b).norm() <= 0.05 * b.norm()


@pytest.mark.parametrize("impl", ["reference", "chunked", "flash"])
def test_autocast_takes_queries_and_keys_wider_than_the_values(impl: Any) -> None:
    """As DINOv3 of Hugging Face gives them: rotary embeddings of q and k in float32, values in bfloat16."""
    inputs = [x.to(torch.bfloat16 if i == 2 else torch.float32) for i, x in enumerate(operands())]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, ce = distilled_attention(*inputs, impl=impl)
        expected = sdpa(*inputs[:3])
    torch.testing.assert_close(out, expected, rtol=0.05, atol=0.02)
    assert ce.isfinite().all()


def test_autocast_takes_copied_queries_and_keys_wider_than_the_values() -> None:
    q, k, v = (x.to(torch.bfloat16 if i == 2 else torch.float32) for i, x in enumerate(operands()[:3]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(frozen_attention(q, k, v), sdpa(q, k, v))


@pytest.mark.parametrize(
    "name",
    [
        "distilled reference",
        "distilled chunked",
        "distilled flash",
        "frozen",
    ],
)
def test_autocast_gives_the_output_the_dtype_that_attention_has_there(name: str) -> None:
    inputs = [x.float() for x in operands()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert CALLS[name](*inputs)[0].dtype == sdpa(*inputs[:3]).dtype


class Listener(TorchFunctionMode):
    """Writes down who is called with what, and may answer in its place."""

    def __init__(self, answer: object = None) -> None:
        super().__init__()
        self.heard: list[tuple[Any, int, dict[str, Any]]] = []
        self.answer = answer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.heard.append((func, len(args), kwargs or {}))
        return func(*args, **(kwargs or {})) if self.answer is None else self.answer


@each_impl
def test_a_mode_sees_attention_and_loss_in_one_as_one_call_with_all_its_options(impl: Any) -> None:
    inputs = operands()
    with Listener() as listener:
        heard = distilled_attention(*inputs, scale_s=0.3, impl=impl)
    nothing = {"scale_t": None, "mask_s": None, "mask_t": None, "reduction": "none"}
    assert listener.heard == [(distilled_attention, 5, {"scale_s": 0.3, "impl": impl, **nothing})]
    torch.testing.assert_close(heard, distilled_attention(*inputs, scale_s=0.3, impl=impl))


def test_a_mode_sees_copied_attention_as_one_call_with_all_its_options() -> None:
    q, k, v = operands()[:3]
    mask = MASKS["additive"][0]
    with Listener() as listener:
        heard = frozen_attention(q, k, v, scale=0.3, mask=mask)
    assert [(func, count) for func, count, _ in listener.heard] == [(frozen_attention, 3)]
    assert listener.heard[0][2]["scale"] == 0.3
    assert listener.heard[0][2]["mask"] is mask
    torch.testing.assert_close(heard, frozen_attention(q, k, v, scale=0.3, mask=mask))


def test_a_mode_may_answer_in_the_place_of_either() -> None:
    inputs, answer = operands(), (torch.ones(1), torch.zeros(1))
    with Listener(answer):
        assert distilled_attention(*inputs) is answer
        assert frozen_attention(*inputs[:3]) is answer  # type: ignore[comparison-overlap]


def test_inner_modes_hear_first_and_outer_ones_after() -> None:
    q, k, v = operands()[:3]
    with Listener() as outer, Listener() as inner:
        frozen_attention(q, k, v)
    assert [x[0] for x in inner.heard] == [x[0] for x in outer.heard] == [frozen_attention]


def test_a_subclass_of_tensor_is_asked_too() -> None:
    asked: list[Any] = []

    class Named(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.append(func)
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))

    inputs = operands()
    inputs[2] = inputs[2].as_subclass(Named)
    frozen_attention(*inputs[:3])
    distilled_attention(*inputs)
    assert frozen_attention in asked
    assert distilled_attention in asked


def test_copied_attention_takes_a_mask_of_keys_alone() -> None:
    """Broadcastable, as its docstring and the losses have it."""
    q, k, v = operands()[:3]
    mask = torch.tensor([True, True, False, True, True])
    torch.testing.assert_close(frozen_attention(q, k, v, mask=mask), sdpa(q, k, v, mask[None]))


def test_extreme_logits_keep_the_gradient_of_the_values() -> None:
    """One-hot rows at ±10⁴: the gradient of a value is that of the rows that read it, and 0 where none does."""
    q = torch.tensor([100.0, -100.0, 100.0]).reshape(1, 1, 3, 1)
    k = torch.tensor([100.0, 0.0, -100.0]).reshape(1, 1, 3, 1)
    v = torch.randn(1, 1, 3, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(frozen_attention(q, k, v).sum(), v)
    torch.testing.assert_close(gradient, torch.tensor([[[[2.0, 2.0], [0.0, 0.0], [1.0, 1.0]]]]))
