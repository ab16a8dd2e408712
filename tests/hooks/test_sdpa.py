"""Several hooks at one attention call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_transfer.errors import UserError
from attention_transfer.hooks import StopForward
from attention_transfer.transfer import AttentionTransfer, Copy, Distill
from attention_transfer.vit import AttentionCall, capture, hook_attention

Build = Callable[..., Any]
Tapped = Callable[[Any], list[str]]


def test_hooks_are_asked_in_order_and_see_what_earlier_ones_replaced(tiny_vit: Build, images: Tensor) -> None:
    model, seen = tiny_vit(), []

    def doubles(call: AttentionCall) -> AttentionCall:
        seen.append(call.scale)
        return replace(call, scale=2 * call.scale)

    handles = [*hook_attention(model, {0: doubles}), *hook_attention(model, {0: doubles})]
    with torch.no_grad(), capture(model, layers=[0]) as calls:
        model(images)
    assert [scale / seen[0] for scale in (*seen, calls[0].scale)] == [1, 2, 4]
    for handle in handles:
        handle.remove()
        handle.remove()
    with torch.no_grad(), capture(model, layers=[0]) as calls:
        model(images)
    assert calls[0].scale == seen[0]


@pytest.mark.parametrize("first", [Copy(), Distill()], ids=lambda rule: type(rule).__name__)
def test_a_student_that_is_bound_twice_is_refused(first: Any, tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2).train()
    bound = AttentionTransfer(tiny_vit(1), student, [first])
    second = hook_attention(student, {0: lambda call: replace(call, scale=1.0)})
    with pytest.raises(UserError, match="block 0 is bound twice"):
        bound(images)
    second[0].remove()
    bound(images)


def test_a_hook_that_ends_the_forward_leaves_the_call_to_the_others(
    tiny_vit: Build, images: Tensor, tapped: Tapped
) -> None:
    model, seen = tiny_vit(), []

    def stops(call: AttentionCall) -> AttentionCall:
        raise StopForward

    def sees(call: AttentionCall) -> AttentionCall:
        seen.append(call.layer)
        return call

    handles = [*hook_attention(model, {1: stops}), *hook_attention(model, {0: sees, 1: sees, 2: sees})]
    with pytest.raises(StopForward):
        model(images)
    assert seen == [0, 1]
    for handle in handles:
        handle.remove()
    assert tapped(model) == []
