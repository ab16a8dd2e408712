"""No map is stored: the largest tensor that any operation returns, and what is kept between the passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attention_transfer.attention import (
    AttentionCall,
    Impl,
    attention_cross_entropy,
    attention_js,
    attention_kl,
    attention_mse,
    distilled_attention,
    frozen_attention,
    logit_l2,
    output_l2,
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


H, N, D = 2, 1408, 8
MAPS = H * N * N  # elements of one side's maps; a tile has 2^20, about a quarter
OPERAND = H * N * D

LOSSES: list[Callable[..., Tensor]] = [*(attention_cross_entropy, attention_kl, attention_js, attention_mse, logit_l2)]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
each_fused = pytest.mark.parametrize("loss", LOSSES[:2], ids=lambda loss: loss.__name__)
teachers = pytest.mark.parametrize("teacher", [False, True], ids=["constant teacher", "teacher with gradient"])


@dataclass
class Use:
    """Elements of the largest tensor in either pass, and of all that lives on between them."""

    forward: int
    kept: int
    backward: int


class Watch(TorchDispatchMode):
    """Sees what every operation returns, also those of a backward pass; views of what was there cost nothing."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.there = {StorageWeakRef(x.untyped_storage()) for x in inputs}
        self.largest = 0
        self.storages: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = StorageWeakRef(tensor.untyped_storage())
                elements = tensor.untyped_storage().nbytes() // tensor.element_size()
                if storage not in self.there:
                    self.storages[storage] = elements
                    self.largest = max(self.largest, elements)
        return result

    def living(self) -> int:
        return sum(elements for storage, elements in self.storages.items() if not storage.expired())


def use(compute: Callable[..., Tensor | tuple[Tensor, ...]], inputs: list[Tensor]) -> Use:
    with Watch(inputs) as watch:
        result = compute(*inputs)
        forward, kept = watch.largest, watch.living()
        watch.largest = 0
        results = result if isinstance(result, tuple) else (result,)
        torch.autograd.backward([x.square().sum() for x in results])
    return Use(forward, kept, watch.largest)


def operands(teacher: bool = False, values: bool = False) -> list[Tensor]:
    """q_s, k_s, v_s where wanted, q_t, k_t; one image."""
    count = 5 if values else 4
    return [torch.randn(1, H, N, D).requires_grad_(teacher or i < count - 2) for i in range(count)]


@each_loss
def test_reference_forms_the_maps(loss: Callable[..., Tensor]) -> None:
    """Or else these tests would show nothing."""
    found = use(lambda *qk: loss(*qk, impl="reference"), operands())
    assert found.forward == found.backward == MAPS
    assert found.kept >= MAPS


@each_loss
@teachers
def test_chunked_has_a_tile_at_a_time_and_keeps_none(loss: Callable[..., Tensor], teacher: bool) -> None:
    found = use(lambda *qk: loss(*qk, impl="chunked"), operands(teacher))
    assert max(found.forward, found.backward) <= 1 << 20 < MAPS / 3
    assert found.kept <= 2 * OPERAND


@each_loss
def test_chunked_under_masks_has_a_tile_at_a_time(loss: Callable[..., Tensor]) -> None:
    hidden = torch.arange(N) < N - 3
    # A logit that one side alone masks is infinitely far from the other's.
    mask_s = hidden if loss is logit_l2 else torch.randn(N, 1).requires_grad_()
    found = use(lambda *qk: loss(*qk, mask_s=mask_s, mask_t=hidden, impl="chunked"), operands())
    assert max(found.forward, found.backward) <= 1 << 20
    assert found.kept <= 2 * OPERAND


@each_fused
@teachers
def test_flash_has_nothing_larger_than_its_operands_and_a_column(loss: Callable[..., Tensor], teacher: bool) -> None:
    found = use(lambda *qk: loss(*qk, impl="flash"), operands(teacher))
    assert max(found.forward, found.backward) <= OPERAND + H * N
    assert found.kept <= 12 * OPERAND


@each_fused
def test_auto_forms_no_map_where_maps_are_large(loss: Callable[..., Tensor]) -> None:
    inputs = [x.detach().repeat(2, 1, 1, 1).requires_grad_(x.requires_grad) for x in operands()]
    found = use(loss, inputs)
    assert max(found.forward, found.backward) <= 2 * (OPERAND + H * N)


def test_auto_with_a_mask_has_a_tile_at_a_time_where_maps_are_large() -> None:
    inputs = [x.detach().repeat(2, 1, 1, 1).requires_grad_(x.requires_grad) for x in operands()]
    mask = torch.arange(N) > 0
    found = use(lambda *qk: attention_mse(*qk, mask_s=mask, mask_t=mask), inputs)
    assert max(found.forward, found.backward) <= 1 << 20


@pytest.mark.parametrize(
    ("impl", "largest"), [("chunked", 1 << 20), ("flash", OPERAND + H * N), ("auto", OPERAND + H * N)]
)
@teachers
def test_attention_and_loss_in_one_form_no_map(impl: Impl, largest: int, teacher: bool) -> None:
    found = use(lambda *qkv: distilled_attention(*qkv, impl=impl), operands(teacher, values=True))
    assert max(found.forward, found.backward) <= largest
    assert found.kept <= 12 * OPERAND


def test_attention_and_loss_in_one_form_maps_in_the_reference() -> None:
    found = use(lambda *qkv: distilled_attention(*qkv, impl="reference"), operands(values=True))
    assert found.forward == found.backward == MAPS


def test_copied_attention_forms_no_map() -> None:
    q, k, v = (torch.randn(1, H, N, D) for _ in range(3))
    found = use(lambda values: frozen_attention(q, k, values), [v.requires_grad_()])
    assert max(found.forward, found.backward) <= OPERAND + H * N  # queries and keys have a further column
    assert found.kept <= 4 * OPERAND


def test_the_distance_of_outputs_forms_no_map() -> None:
    student = [torch.randn(1, H, N, D).requires_grad_() for _ in range(3)]
    teacher = [torch.randn(1, H, N, D) for _ in range(3)]
    found = use(output_l2, student + teacher)
    assert max(found.forward, found.backward) <= OPERAND


def test_the_class_tokens_loss_has_one_row() -> None:
    found = use(class_row, operands(teacher=True))
    assert max(found.forward, found.backward) <= OPERAND
