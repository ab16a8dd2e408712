"""The fused kernels against the float64 reference, in Triton's interpreter and, where there is one, on a GPU.

The interpreter must be switched on before Triton is imported, so every batch of cases runs in a process of its own:
this file, called as a script. An error budget holds element by element. It follows from float32 sums of D or M terms
and from what is rounded to the operands' dtype: the weights before a product, and the results.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from attention_transfer.attention import AttentionCall, attention_kl, rows, triton_check, triton_kernels
from attention_transfer.attention.triton_check import Kind, errors_of
from attention_transfer.attention.triton_launch import launch
from attention_transfer.errors import UserError

if TYPE_CHECKING:  # this file is also a program, which finds no tests on its path
    from tests.warm import Python

E32 = torch.finfo(torch.float32).eps
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
DEVICES = ["interpreter", *(["cuda"] if torch.cuda.is_available() else [])]

of = AttentionCall.of


class Case(NamedTuple):
    """Sizes, dtypes and masks of one comparison."""

    n: int = 33
    m: int = 35
    d_s: int = 16
    d_t: int = 16
    d_v: int = 16
    batch: int = 1
    heads: int = 1
    dtype: torch.dtype = SINGLE
    dtype_t: torch.dtype | None = None
    scale_s: float | None = None
    scale_t: float | None = None
    spread: float = 1.0
    g_scale: float = 1.0
    mask_s: Tensor | None = None
    mask_t: Tensor | None = None
    packed: bool = False


def compare(case: Case, device: str) -> None:
    """Values and gradients of all three functions, each within its budget."""
    generator = torch.Generator().manual_seed(case.n + 7 * case.m)

    def draw(*shape: int, dtype: torch.dtype = SINGLE, spread: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * spread).to(dtype).to(device)

    head, teacher = (case.batch, case.heads), case.dtype_t or case.dtype
    if case.packed:  # as a model's joint projection leaves them
        q, k, v = draw(case.batch, case.n, 3, case.heads, case.d_s, dtype=case.dtype).permute(2, 0, 3, 1, 4)
        q_t, k_t = draw(2, case.batch, case.d_t, case.n, case.heads, dtype=teacher).permute(0, 1, 4, 3, 2)
        d_out = draw(*head, 1, 1, dtype=case.dtype).expand_as(v)
    else:
        q = draw(*head, case.n, case.d_s, dtype=case.dtype, spread=case.spread)
        k, v = draw(*head, case.m, case.d_s, dtype=case.dtype), draw(*head, case.m, case.d_v, dtype=case.dtype)
        q_t = draw(*head, case.n, case.d_t, dtype=teacher, spread=case.spread)
        k_t = draw(*head, case.m, case.d_t, dtype=teacher)
        d_out = draw(*head, case.n, case.d_v, dtype=case.dtype)
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    g = draw(*head, case.n, spread=case.g_scale)
    mask_s, mask_t = (None if x is None else x.to(device) for x in (case.mask_s, case.mask_t))
    s, t = of(q, k, case.scale_s, mask_s), of(q_t, k_t, case.scale_t, mask_t)
    exact = Exact(s, v, t, g, d_out)

    ce = triton_kernels.cross_entropy(s, t)
    exact.within("ce", ce)
    exact.within("d_k of ce", *torch.autograd.grad(ce, k, g))
    kl = triton_kernels.kl(s, t)
    exact.within("kl", kl)
    exact.within("d_q of ce", *torch.autograd.grad(kl, q, g))
    out, ce = triton_kernels.distilled(s, v, t)
    assert out.dtype == case.dtype
    exact.within("ce", ce)
    exact.within("out", out)
    for name, gradient in zip(
        ("d_q", "d_k", "d_v"), torch.autograd.grad([out, ce], [q, k, v], [d_out, g]), strict=True
    ):
        exact.within(name, gradient)


class Exact:
    """The reference in float64, and how far a kernel may be from it."""

    def __init__(self, s: AttentionCall, v: Tensor, t: AttentionCall, g: Tensor, d_out: Tensor) -> None:
        eps = torch.finfo(v.dtype).eps
        self.tiny = torch.finfo(v.dtype).smallest_normal * eps  # between neighbours where float16 is subnormal
        q, k, v = (x.detach().double().requires_grad_() for x in (s.q, s.k, v))
        g, d_out = g.double(), d_out.double()
        wide_s, wide_t = (
            of(q, k, s.scale, s.mask),
            of(t.q.double(), t.k.double(), t.scale, t.mask),
        )
        logits_s, logits_t = wide_s.wide_logits(), wide_t.wide_logits()
        out, ce, kl = rows.softmax(logits_s) @ v, rows.cross_entropy(logits_s, logits_t), rows.kl(logits_s, logits_t)
        self.values = {"ce": ce, "kl": kl, "out": out}
        of_ce = torch.autograd.grad(ce, [q, k], g, retain_graph=True)
        self.values |= dict(zip(("d_q of ce", "d_k of ce"), of_ce, strict=True))
        of_both = torch.autograd.grad([out, ce], [q, k, v], [d_out, g])
        self.values |= dict(zip(("d_q", "d_k", "d_v"), of_both, strict=True))

        q, k, v, p_s, p_t = (x.detach() for x in (q, k, v, rows.softmax(logits_s), rows.softmax(logits_t)))
        n, m, scale = q.shape[2], k.shape[2], q.shape[3] ** -0.5 if s.scale is None else s.scale
        alive = (p_s.sum(-1) > 0) & (p_t.sum(-1) > 0)
        g = (g * alive)[..., None]
        # A logit is off by δ, so a weight by the factor 1 ± 2δ, and by that of its sum.
        off_s, off_t = logit_error(wide_s), logit_error(wide_t)
        sums = (m + 16) * E32
        rel_s, rel_t = 2 * off_s[..., None] + sums, 2 * off_t[..., None] + sums
        nats = ce.detach().nan_to_num(posinf=0.0)
        entropy = (ce - kl).detach().nan_to_num()
        self.budget = {"ce": 2 * off_s + (2 * off_t + sums) * (1 + nats)}
        self.budget["kl"] = self.budget["ce"] + (2 * off_t + sums) * (1 + entropy)
        # Of the loss alone: dS = g (P_s - P_t), rounded.
        of_loss = g * (p_s - p_t)
        error = g.abs() * (p_s * rel_s + p_t * rel_t) + eps * of_loss.abs()
        error = error + self.tiny * g.abs().amax() * 2**-12
        self._products(" of ce", error, of_loss.abs(), q.abs() * scale, k.abs() * scale, eps)
        # Of both: dS = P_s ∘ (dP - δ + g) - g P_t.
        self.budget["out"] = (p_s * (rel_s + eps) + self.tiny) @ v.abs() + eps * out.detach().abs()
        size_dp = d_out.abs() @ v.abs().mT
        off_dp = (v.shape[-1] + 4) * E32 * (size_dp + (d_out * out).detach().abs().sum(-1, keepdim=True))
        off_delta = (d_out.abs() * self.budget["out"]).sum(-1, keepdim=True)
        inner = (d_out @ v.mT - (d_out * out.detach()).sum(-1, keepdim=True) + g).abs()
        d_s = (p_s * inner) + g.abs() * p_t
        error = p_s * (inner * rel_s + off_dp + off_delta) + g.abs() * p_t * rel_t + eps * d_s + self.tiny
        self._products("", error, d_s, q.abs() * scale, k.abs() * scale, eps)
        of_v = (p_s * (rel_s + eps) + self.tiny).mT @ d_out.abs() + n * E32 * (p_s.mT @ d_out.abs())
        self.budget["d_v"] = of_v + eps * self.values["d_v"].abs()

    def _products(self, of: str, error: Tensor, d_s: Tensor, q: Tensor, k: Tensor, eps: float) -> None:
        for name, a, b in (("d_q", error, k), ("d_k", error.mT, q)):
            terms = a.shape[-1] * E32 * ((d_s if name == "d_q" else d_s.mT) @ b)
            self.budget[name + of] = a @ b + terms + eps * self.values[name + of].abs()

    def within(self, name: str, actual: Tensor) -> None:
        """Compare one result."""
        expected, budget = self.values[name].detach(), self.budget[name] + self.tiny + 1e-30
        assert actual.shape == expected.shape, (name, actual.shape)
        same = actual.double() == expected  # also where both are inf
        excess = torch.where(same, 0.0, (actual.double() - expected).abs() / budget)
        worst = float(excess.nan_to_num(math.inf).max())
        if os.environ.get("SHOW_ERRORS"):
            print(f"{name}: {worst:.3f} of a budget of {float(budget.max()):.1e}", file=sys.stderr)
        assert worst <= 1, f"{name} is off by {worst:.2g} times its budget of at most {float(budget.max()):.1e}"


def logit_error(side: AttentionCall) -> Tensor:
    """How far a row's logits in float32 may be from exact ones."""
    mask = None
    if side.mask is not None and side.mask.dtype != torch.bool:
        mask = side.mask.double().abs().masked_fill(side.mask < -1e20, 0.0)
    scale = abs(side.q.shape[-1] ** -0.5 if side.scale is None else side.scale)
    size = of(side.q.detach().abs(), side.k.detach().abs(), scale, mask).wide_logits()
    return (side.q.shape[-1] + 8) * E32 * size.amax(-1)


def drawn_bool(*shape: int, keep: float = 0.8) -> Tensor:
    """A boolean mask whose first key always takes part."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(5)) < keep
    mask[..., 0] = True
    return mask


def drawn_bias(*shape: int, hidden: float = 0.0) -> Tensor:
    """An additive mask, some of it -inf, but never at the first key."""
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(6)) * 2
    if not hidden:
        return bias
    return bias.masked_fill(~drawn_bool(*shape, keep=1 - hidden), -math.inf)


def dead(rows_: list[int], n: int = 33, m: int = 35, fill: float = -math.inf) -> Tensor:
    """An additive mask of which some rows mask every key."""
    mask = torch.zeros(1, 1, n, m)
    mask[:, :, rows_] = fill
    return mask


def least(*shape: int) -> Tensor:
    """A boolean mask written with the least float, as Hugging Face does."""
    return torch.where(drawn_bool(*shape), 0.0, LEAST)


def only_one_result_used(device: str) -> None:
    """A loss on the output alone is plain attention's, also where only the values learn."""
    q, k, v, q_t, k_t = torch.randn(5, 1, 2, 18, 16, generator=torch.Generator().manual_seed(8)).to(device)
    v.requires_grad_()
    s, t = of(q, k, None, None), of(q_t, k_t, None, None)
    out, ce = triton_kernels.distilled(s, v, t)
    assert not ce.sum().isnan()
    expected = s.wide_logits().softmax(-1).sum(-2)[..., None].expand_as(v)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), v)[0], expected)
    for x in (q, k):
        x.requires_grad_()
    out, ce = triton_kernels.distilled(s, v, t)
    of_both = torch.autograd.grad(ce.sum(), [q, k, v])
    of_ce = torch.autograd.grad(triton_kernels.cross_entropy(s, t).sum(), [q, k])
    torch.testing.assert_close(of_both, (*of_ce, torch.zeros_like(v)), rtol=1e-4, atol=1e-6)


def equal_sides_have_no_divergence(device: str) -> None:
    """KL is exactly 0 where the operands are the same, and so are its gradients."""
    q, k = (
        torch.randn(1, 2, 20, 16, generator=torch.Generator().manual_seed(9)).to(device).requires_grad_() for _ in "qk"
    )
    kl = triton_kernels.kl(of(q, k, None, None), of(q.detach(), k.detach(), None, None))
    assert not kl.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(kl.sum(), [q, k]))


def large_logits_worked_by_hand(device: str) -> None:
    """Logits of 1e4 and -1e4 and two just under 1e4, which only they share the weights with."""
    q = torch.tensor([[[[100.0], [-100.0]]]], device=device).requires_grad_()
    k = torch.tensor([[[[100.0], [-100.0], [99.99], [99.98]]]], device=device).requires_grad_()
    t = of(q.detach().clone(), k.detach() * torch.tensor([[1.0], [1.0], [1.0], [-1.0]], device=device), 1.0, None)
    out, ce = triton_kernels.distilled(of(q, k, 1.0, None), k, t)
    total = 1 + math.exp(-1) + math.exp(-2)
    log_p = [-math.log(total), -1 - math.log(total)]
    of_teacher = [1 / (1 + math.exp(-1)), 1 / (1 + math.e)]
    # Row 1 turns the signs: the student's weight is on key 1, the teacher's on keys 1 and, e^-2 as likely, 3.
    expected = [
        -sum(p * log for p, log in zip(of_teacher, log_p, strict=True)),
        math.exp(-2) / (1 + math.exp(-2)) * 19998,
    ]
    torch.testing.assert_close(ce[0, 0].tolist(), expected, rtol=2e-3, atol=2e-3)
    assert all(x.isfinite().all() for x in (out, *torch.autograd.grad(ce.sum(), [q, k])))


def nothing_to_do(device: str) -> None:
    """No keys, no rows, no images."""
    for batch, n, m in ((1, 3, 0), (1, 0, 3), (0, 3, 3)):
        q, k = torch.zeros(batch, 2, n, 16, device=device), torch.zeros(batch, 2, m, 16, device=device)
        q.requires_grad_(), k.requires_grad_()
        s, t = of(q, k, None, None), of(q.detach(), k.detach(), None, None)
        out, ce = triton_kernels.distilled(s, k, t)
        assert out.shape == q.shape
        assert ce.shape == (batch, 2, n)
        gradients = torch.autograd.grad(out.sum() + ce.sum(), [q, k])
        assert not any(x.any() for x in (out, ce, *gradients))


def what_has_no_gradient_is_refused(device: str) -> None:
    """Teachers and masks that require gradients, and operands that the kernels were not made for."""
    q = torch.zeros(1, 1, 4, 16, device=device)
    learning, mask = q.clone().requires_grad_(), torch.zeros(4, 4, device=device).requires_grad_()
    plain = of(q, q, None, None)
    wide = torch.zeros(1, 1, 4, 160, device=device)
    for s, t, reason in (
        (plain, of(q, learning, None, None), "teacher requires a gradient"),
        (of(q, q, None, mask), plain, "mask requires a gradient"),
        (plain, of(q, q, None, mask), "mask requires a gradient"),
        (
            of(q.double(), q.double(), None, None),
            plain,
            "are float64, not all float16, bfloat16 or float32",
        ),
        (plain, of(q, q.half(), None, None), "float16 and float32"),
        (
            plain,
            of(q, q, None, torch.ones(4, 4, dtype=torch.int32, device=device)),
            "neither boolean nor floating",
        ),
        (of(wide, wide, None, None), plain, "over 128"),
        (plain, of(q, q, -1.0, None), "scale is negative"),
        (of(q, q[..., :8], None, None), plain, "student's keys are"),
        (plain, of(q[:, :, :2], q, None, None), "teacher's queries are"),
        (plain, of(q, q[:, :0], None, None), "teacher's keys are"),
    ):
        assert reason in str(triton_kernels.obstacle(s, t))
        assert reason in str(triton_kernels.obstacle(s, t, s.k))
    assert "student's values are" in str(triton_kernels.obstacle(plain, plain, q[:, :, :2]))
    with pytest.raises(UserError, match="teacher requires a gradient"):
        attention_kl.between(plain, of(q, learning, None, None), impl="triton")
    with torch.no_grad():
        assert not triton_kernels.kl(of(q, q, None, mask), of(learning, q, None, mask)).any()


def a_compiler_sees_one_call(device: str) -> None:
    """Forward and backward, without a break in the graph, for all functions, masks and any number of tokens."""
    mask = drawn_bias(33, 35).to(device)
    for tokens in (33, 20):
        q, k, v, q_t, k_t = (torch.randn(1, 2, n, 16, device=device) for n in (tokens, 35, 35, tokens, 35))
        for x in (q, k, v):
            x.requires_grad_()
        s, t = of(q, k, None, mask[:tokens]), of(q_t, k_t, None, None)
        for call in (
            lambda: triton_kernels.distilled(s, v, t),  # noqa: B023 - called in this round
            lambda: (triton_kernels.kl(s, t),),  # noqa: B023 - likewise
        ):
            seen = CompileCounterWithBackend("aot_eager")
            compiled = torch.compile(call, backend=seen, fullgraph=True)
            results, expected = compiled(), call()
            used = [q, k, v][: 1 + len(results)]
            gradients, wanted = (torch.autograd.grad([x.sum() for x in y], used) for y in (results, expected))
            torch.testing.assert_close((*results, *gradients), (*expected, *wanted), rtol=0, atol=0)
            names = {str(node.target) for graph in seen.graphs for node in graph.graph.nodes}
            assert not any("triton" in name for name in names)


def a_second_derivative_is_refused(device: str) -> None:
    """It has none; zeros in its place would be wrong."""
    q, k = (torch.randn(1, 1, 4, 16, device=device, requires_grad=True) for _ in range(2))
    ce = triton_kernels.cross_entropy(of(q, k, None, None), of(q.detach(), k.detach(), None, None))
    (d_q,) = torch.autograd.grad(ce.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        d_q.sum().backward()


def the_check_of_a_gpu_passes(device: str) -> None:
    """For all losses, dtypes and masks, whatever is around it, and without a draw from PyTorch's generator."""
    state = torch.get_rng_state()
    for loss, dtype, mask_s, mask_t in (
        ("attention_cross_entropy", SINGLE, None, torch.bool),
        ("attention_kl", HALF, BRAIN, None),
        ("distilled_attention", BRAIN, torch.bool, SINGLE),
    ):
        kind = Kind(loss, torch.device(device), dtype, SINGLE, mask_s, mask_t, 24, 16, 40)
        with torch.inference_mode(), torch.autocast(device, dtype=BRAIN):
            errors = errors_of(kind)
        assert 0 < max(errors.values()) <= triton_check.LIMITS[dtype], (kind, errors)
        assert set(errors) >= {"the loss", "the gradient of q", "the gradient of k"}
    assert torch.equal(torch.get_rng_state(), state)


def the_check_of_a_gpu_finds_what_is_wrong(device: str) -> None:
    """In either pass, and in a graph that is compiled: what is wrong is named, and a NaN is wrong."""
    kind = ("distilled_attention", torch.device(device), BRAIN, BRAIN, None, None, 16, 16, 16)
    spoils = ("forward", 4, 1.1, "the loss"), ("rows", 11, math.nan, "the gradient of q")
    for kernel, place, factor, name in spoils:

        def spoiled(which: str, operands: Any, *others: Any) -> None:
            launch(which, operands, *others)
            if which == kernel:  # noqa: B023 - called in this round
                others[place].mul_(factor)  # noqa: B023 - likewise

        triton_check.problem_of.cache_clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton_kernels, "launch", spoiled)
            problem = triton_check.problem_of(Kind(*kind))
            assert problem is not None
            assert f"wrong on this GPU ({name} is off by" in problem
    triton_check.problem_of.cache_clear()

    def asks(x: Tensor) -> Tensor:
        call = of(x, x, None, None)
        return x + (triton_check.problem(kind[0], call, call) is None)

    for dynamic in (False, True):
        compiled = torch.compile(asks, backend="eager", fullgraph=True, dynamic=dynamic)
        zeros = torch.zeros(1, 1, 3, 16, dtype=BRAIN, device=device)
        assert torch.equal(compiled(zeros), torch.ones_like(zeros))


LATE = (torch.arange(35) >= 16).float()
LEAST = torch.finfo(SINGLE).min
SIZES = {
    "odd rows and keys": Case(heads=2),
    "whole tiles": Case(n=32, m=32, dtype=HALF),
    "one row and one key": Case(n=1, m=1, dtype=BRAIN),
    "more keys, other widths": Case(heads=2, n=17, m=49, d_s=24, d_t=80, d_v=16),
    "fewer keys, other widths": Case(n=50, m=18, d_s=80, d_t=64, d_v=40, dtype=HALF, scale_s=0.3, scale_t=0.05),
    "bfloat16, wide": Case(n=20, m=33, d_s=64, d_t=128, d_v=64, dtype=BRAIN),
    "a float32 teacher": Case(d_s=24, dtype=BRAIN, dtype_t=SINGLE),
    "a float16 teacher": Case(heads=2, d_t=64, dtype_t=HALF, batch=2, n=10, m=12),
    "a joint projection": Case(heads=2, packed=True, n=21, m=21, d_s=24, d_v=24, batch=2),
    "a joint projection, bfloat16": Case(packed=True, n=21, m=21, dtype=BRAIN),
    "a large loss scale": Case(dtype=HALF, g_scale=3e4, n=20, m=20, spread=0.1),
    "a small loss": Case(dtype=HALF, g_scale=1e-3, n=20, m=20),
}
MASKS = {
    "boolean, keys": Case(heads=2, mask_s=drawn_bool(2, 1, 1, 35), mask_t=drawn_bool(2, 1, 1, 35), batch=2, n=5),
    "boolean, rows and keys, bfloat16": Case(mask_s=drawn_bool(33, 35), mask_t=drawn_bool(33, 35), dtype=BRAIN),
    "the student masks what the teacher uses": Case(mask_s=drawn_bool(1, 1, 33, 35)),
    "the teacher alone masks": Case(heads=2, mask_t=drawn_bool(1, 2, 20, 35), dtype=HALF, n=20),
    "a bias that is the same for all keys": Case(heads=2, mask_s=drawn_bias(2, 33, 1)),
    "biases of both": Case(
        heads=2, mask_s=drawn_bias(2, 33, 35), mask_t=drawn_bias(1, 2, 33, 35).to(BRAIN), dtype=BRAIN
    ),
    "biases with -inf": Case(mask_s=drawn_bias(20, 35, hidden=0.2), mask_t=drawn_bias(20, 35, hidden=0.2), n=20),
    "a float64 bias": Case(mask_t=drawn_bias(1, 35).double(), n=9),
    "dead rows of the student": Case(mask_s=dead([0, 7, 32])),
    "dead rows of the teacher, boolean": Case(mask_t=dead([0, 7, 32]) == 0),
    "dead rows of both": Case(mask_s=dead([1, 2]), mask_t=dead([2, 3]), dtype=HALF),
    "nothing but dead rows": Case(mask_s=dead([*range(9)], n=9), n=9, dtype=BRAIN),
    "the student masks what the teacher uses in the end no more": Case(mask_s=LATE > 0, mask_t=LATE * 2000.0, n=9),
    "the least float on some keys": Case(mask_s=least(20, 35), mask_t=drawn_bool(20, 35), n=20),
    "the least float on whole rows": Case(mask_s=dead([0, 5], fill=LEAST), mask_t=dead([0, 8], fill=LEAST)),
}
EXTREMES = {
    "logits of 1e4": Case(spread=1e4),
    "logits of 1e4, float16": Case(scale_s=2500.0, scale_t=2500.0, dtype=HALF, g_scale=0.1),
    "logits of 1e4, bfloat16": Case(spread=1e4, dtype=BRAIN, n=20),
    "a bias of -1e4": Case(mask_s=drawn_bool(20, 35) * 1e4 - 1e4, mask_t=drawn_bool(20, 35) * 1e4 - 1e4, n=20),
    "a bias of 1e4": Case(mask_s=drawn_bias(35) + 1e4, n=9),
}
Checks = dict[str, Callable[[str], None]]
COMPARISONS: Checks = {name: partial(compare, case) for name, case in (SIZES | MASKS | EXTREMES).items()}
# Of each dtype, layout and kind of mask one; the interpreter takes a second or two for each.
ENOUGH = (
    "odd rows and keys",
    "fewer keys, other widths",
    "a float32 teacher",
    "a joint projection, bfloat16",
    "boolean, keys",
    "biases of both",
    "biases with -inf",
    "dead rows of both",
    "the least float on whole rows",
    "the student masks what the teacher uses in the end no more",
    "logits of 1e4, bfloat16",
)
BATCHES: dict[str, Checks] = {
    "enough": {
        **{name: COMPARISONS[name] for name in ENOUGH},
        "only one result used": only_one_result_used,
        "equal sides have no divergence": equal_sides_have_no_divergence,
        "large logits worked by hand": large_logits_worked_by_hand,
        "nothing to do": nothing_to_do,
        "what has no gradient is refused": what_has_no_gradient_is_refused,
        "a compiler sees one call": a_compiler_sees_one_call,
        "a second derivative is refused": a_second_derivative_is_refused,
        "the check of a GPU passes": the_check_of_a_gpu_passes,
        "the check of a GPU finds what is wrong": the_check_of_a_gpu_finds_what_is_wrong,
    },
    "the others": {name: check for name, check in COMPARISONS.items() if name not in ENOUGH},
}


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.slow
@pytest.mark.parametrize("batch", ["enough", pytest.param("the others", marks=pytest.mark.long)])
def test_the_kernels_agree_with_the_reference(batch: str, device: str) -> None:
    """All cases of a batch; the failures are listed together."""
    environment = os.environ | {"TRITON_INTERPRET": str(int(device == "interpreter")), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, batch, device.replace("interpreter", "cpu")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    if report["unusable"]:
        pytest.skip(f"Triton's interpreter doesn't run here: {report['unusable']}")
    assert not report["failed"], "\n\n".join(f"{name}: {what}" for name, what in report["failed"].items())
    assert set(report["passed"]) == set(BATCHES[batch])


COMPILES = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from attention_transfer.attention.triton_launch import TILES
from attention_transfer.attention.triton_programs import KERNELS

capability, dtype, kind, mask, values = int(sys.argv[1]), *sys.argv[2:]
for name, kernel in KERNELS.items():
    types, constants = {}, {"WIDE_V": 64, **dict.fromkeys(("D_S", "D_T", "D_V", "WIDE_S", "WIDE_T"), 64)}
    constants["BLOCK_N"], constants["BLOCK_M"], warps, stages = TILES[kind][name]
    for argument in kernel.arg_names:
        if argument in constants:
            types[argument] = "constexpr"
        elif argument in ("own", "unit") or (argument in ("v_s", "out", "d_out", "d_v", "delta") and not values):
            types[argument], constants[argument] = "constexpr", None
        elif argument in ("mask_s", "mask_t"):
            types[argument] = mask or "constexpr"
            if not mask:
                constants[argument] = None
        elif argument in ("q_s", "k_s", "v_s", "q_t", "k_t", "out", "d_out", "d_q", "d_k", "d_v"):
            types[argument] = "*" + dtype
        elif argument in ("ce", "stats", "g", "delta"):
            types[argument] = "*fp32"
        else:
            types[argument] = "fp32" if argument.startswith("scale") else "i32"
    options = {"num_warps": warps, "num_stages": stages}
    compiled = compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", capability, 32), options=options)
    print(name, len(compiled.asm["cubin"]), compiled.metadata.shared)
"""
SHARED_MEMORY = {
    80: 166_912,
    86: 101_376,
    90: 232_448,
}  # bytes of memory beside the cores that a program can have there


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton's compiler is there on Linux alone")
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtype", "kind", "mask", "values"),
    [
        (90, "bf16", "narrow", "", "values"),
        pytest.param(80, "fp16", "narrow", "", "", marks=pytest.mark.long),
        pytest.param(86, "bf16", "masked", "*fp32", "values", marks=pytest.mark.long),
        pytest.param(90, "bf16", "masked", "*i1", "values", marks=pytest.mark.long),
        pytest.param(86, "fp32", "float32", "", "values", marks=pytest.mark.long),
    ],
)
def test_the_kernels_compile_for_gpus_that_are_not_here(
    capability: int, dtype: str, kind: str, mask: str, values: str, tmp_path: Path
) -> None:
    """To machine code, with tiles that fit these GPUs."""
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", COMPILES, str(capability), dtype, kind, mask, values]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = {name: (int(size), int(shared)) for name, size, shared in map(str.split, run.stdout.splitlines())}
    assert set(found) == {"forward", "rows", "keys"}
    assert all(size > 0 and shared <= SHARED_MEMORY[capability] for size, shared in found.values())


def test_the_library_imports_without_triton(python: Python) -> None:
    """And says why the kernels can't be used."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from attention_transfer.attention import triton_kernels\n"
        "print(triton_kernels.available())"
    )
    run = python("-c", code)
    assert run.stdout.splitlines()[-1:] == ["Triton is not installed, or older than 3.4"], run.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_without_a_gpu_the_reason_is_given() -> None:
    """In the words of the error, too."""
    q = torch.zeros(1, 1, 2, 16)
    assert triton_kernels.available() == "there is no CUDA device"
    with pytest.raises(UserError, match="there is no CUDA device"):
        attention_kl(q, q, q, q, impl="triton")


def unusable(device: str) -> str | None:
    """Why the interpreter fails at the simplest loss: some of Triton's releases don't know the newest NumPy."""
    q = torch.zeros(1, 1, 1, 16, device=device)
    try:
        triton_kernels.cross_entropy(of(q, q, None, None), of(q, q, None, None))
    except Exception as error:
        cause = error.__cause__ or error  # some releases put an error of their own around it
        if isinstance(cause, TypeError):
            return repr(cause)
        raise
    return None


def main(batch: str, device: str) -> None:
    """Run a batch and print what came of it as the last line."""
    warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of what the kernels compute for dead rows and drop
    report: dict[str, Any] = {"unusable": unusable(device), "passed": [], "failed": {}}
    for name, check in {} if report["unusable"] else BATCHES[batch].items():
        try:
            check(device)
            report["passed"].append(name)
        except Exception:  # noqa: BLE001 - the report holds it
            report["failed"][name] = traceback.format_exc()
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
