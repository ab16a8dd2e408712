"""The calls that a GPU would get, on tensors without data: operators take their arguments, and shapes are right.

Whether the numbers are right only a GPU can say; `benchmarks/gpu` asks it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from attention_transfer.attention import (
    choose_impl,
    distilled_attention,
    flash,
    fused,
    gpu,
    triton_check,
    triton_kernels,
)
from attention_transfer.errors import UserError


@pytest.fixture(autouse=True)
def fake_gpu() -> Iterator[None]:
    with FakeTensorMode():
        yield


def operands(dtype: torch.dtype, width: int = 64, n: int = 197) -> list[Tensor]:
    """q_s, k_s, v_s, q_t and k_t of unequal widths."""
    shapes = [(n, width), (n + 60, width), (n + 60, 40), (n, 80), (n + 60, 80)]
    return [torch.empty(2, 3, *shape, device="cuda", dtype=dtype) for shape in shapes]


# The passes are called one by one: PyTorch's engine would look for the GPU.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_both_passes_of_an_attention(dtype: torch.dtype) -> None:
    q, k, v = fused.widened(*operands(dtype)[:3])
    attended = fused.forward(q, k, v, scale=0.1)
    assert (attended.out.shape, attended.out.dtype) == (q.shape, dtype)
    assert (attended.lse.shape, attended.lse.dtype) == ((2, 3, 197), torch.float32)
    found = flash._gradients(attended.out, attended.lse, q, k, v, attended, 0.1)
    assert [(g.shape, g.dtype) for g in found if g is not None] == [(x.shape, dtype) for x in (q, k, v)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_attention_and_loss_in_one(dtype: torch.dtype, reduction: str) -> None:
    out, ce = distilled_attention(*operands(dtype), impl="flash", reduction=reduction)  # type: ignore[arg-type]
    assert (out.shape, out.dtype) == ((2, 3, 197, 40), dtype)
    assert (ce.shape, ce.dtype) == ((2, 3, 197) if reduction == "none" else (), torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_teachers_part_of_the_gradients(dtype: torch.dtype) -> None:
    q_s, k_s, _, q_t, k_t = operands(dtype)
    averaged, gathered = flash._both_ways(q_t, k_t, q_s, k_s, 0.1)
    assert (averaged.shape, averaged.dtype) == (q_s.shape, dtype)
    assert (gathered.shape, gathered.dtype) == (k_s.shape, dtype)


def test_head_dimensions_become_multiples_of_eight() -> None:
    q, k, x, *_ = operands(torch.bfloat16, width=50)
    assert {y.shape[-1] for y in fused.widened(q, k, x)} == {56}


FUSED = ["attention_cross_entropy", "attention_kl", "distilled_attention"]


@pytest.mark.parametrize("loss", FUSED)
def test_auto_takes_the_kernels_that_come_out_right_on_the_gpu(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of operands as these: each loss, dtype, width and mask is tried; what is wrong is said, and PyTorch's serve."""
    asked = []

    def problem_of(kind: triton_check.Kind) -> str | None:
        asked.append(kind)
        return None if kind.dtype_s == torch.bfloat16 else "they are wrong on this GPU"

    monkeypatch.setattr(triton_kernels, "available", lambda: None)
    monkeypatch.setattr(triton_check, "problem_of", problem_of)
    for dtype, impl in ((torch.bfloat16, "triton"), (torch.float16, "flash")):
        q, k, v, q_t, k_t = operands(dtype)
        choice = choose_impl(loss, q, k, q_t, k_t, v_s=v if loss == "distilled_attention" else None)
        assert choice.impl == impl
        assert ("right in a test on this GPU" in choice.reason) is (impl == "triton")
        assert ("they are wrong on this GPU" in choice.reason) is (impl == "flash")
    mask = torch.empty(197, 257, device="cuda")
    choice = choose_impl(loss, q, k, q_t, k_t, mask_s=mask)
    assert choice.impl == "reference"
    expected = "there is a mask or bias, and the maps are small; not by triton: they are wrong on this GPU"
    assert choice.reason == expected
    d_v = 40 if loss == "distilled_attention" else 64
    kinds = [(torch.bfloat16, None, d_v), (torch.float16, None, d_v), (torch.float16, torch.float32, 64)]
    assert asked == [
        triton_check.Kind(loss, q.device, dtype, dtype, mask, None, 64, 80, width) for dtype, mask, width in kinds
    ]


def test_a_gpu_before_ampere_has_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "before_ampere", lambda: True)
    q, k, *_ = operands(torch.bfloat16)
    choice = choose_impl("attention_kl", q, k)
    assert choice.impl == "reference"
    assert "wants a GPU of the Ampere generation or later, and the maps are small" in choice.reason
    assert choose_impl("attention_kl", q.float(), k.float()).impl == "flash"


@pytest.mark.parametrize(("capability", "old"), [((7, 5), True), ((8, 0), False)])
def test_the_generation_of_a_gpu(capability: tuple[int, int], old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert gpu.before_ampere() is old


def test_the_generation_is_a_constant_to_compilers() -> None:
    with unset_fake_temporarily():
        compiled = torch.compile(lambda x: x + gpu.before_ampere(), backend="eager", fullgraph=True)
        assert compiled(torch.zeros(1)).item() == gpu.before_ampere()


def test_without_triton_pytorchs_kernels_serve_and_it_is_said() -> None:
    q, k, *_ = operands(torch.bfloat16)
    choice = choose_impl("attention_kl", q, k)
    assert choice.impl == "flash"
    assert choice.reason == "PyTorch's fused kernels serve it on CUDA; not by triton: there is no CUDA device"


@pytest.mark.parametrize(
    ("dtype", "width", "reason"), [(torch.float64, 64, "takes no float64"), (torch.float16, 250, "is over 248")]
)
def test_what_no_kernel_serves_is_refused(dtype: torch.dtype, width: int, reason: str) -> None:
    q, k, *_ = operands(dtype, width)
    with pytest.raises(UserError, match=reason):
        choose_impl("attention_kl", q, k, impl="flash")
