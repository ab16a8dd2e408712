from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.transfer import AttentionTransfer, Copy, Distill
from attention_transfer.vit import AttentionCall

Build = Callable[..., Any]
Maps = Callable[[nn.Module, Tensor], list[Tensor]]


def with_maps(student: Any, maps: dict[int, Tensor], images: Tensor) -> Tensor:
    """Logits of a copy of the student whose named blocks use these maps, by timm's unfused code."""
    plain = copy.deepcopy(student)
    for layer, given in maps.items():
        attention = plain.blocks[layer].attn
        attention.fused_attn = False
        attention.attn_drop.register_forward_hook(lambda module, args, output, given=given: given)
    logits: Tensor = plain(images)
    return logits


def with_operands(teacher: Any, student: Any, parts: str, heads: list[int], images: Tensor) -> Tensor:
    """Logits of a copy of the student whose qkv layers answer with some parts and heads of the teacher's."""
    source, plain = copy.deepcopy(teacher), copy.deepcopy(student)
    answers: list[Tensor] = []

    def answer(module: Any, args: Any, own_BNC: Tensor) -> Tensor:
        mixed, theirs = (qkv.clone().reshape(*qkv.shape[:2], 3, 3, -1) for qkv in (own_BNC, answers.pop(0)))
        for part in parts:
            mixed[:, :, "qkv".index(part), heads] = theirs[:, :, "qkv".index(part), heads]
        return mixed.flatten(2)

    for block in source.blocks:
        block.attn.qkv.register_forward_hook(lambda module, args, output: answers.append(output))
    for block in plain.blocks:
        block.attn.qkv.register_forward_hook(answer)
    source(images)
    logits: Tensor = plain(images)
    return logits


@pytest.mark.parametrize(("layers", "chosen"), [(None, [0, 1, 2]), ([1], [1]), (2, [1, 2])])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_relpos_small_patch16_224", "eva02_tiny_patch14_224"])
def test_the_student_attends_by_its_teachers_maps(
    name: str, layers: Any, chosen: list[int], tiny_vit: Build, images: Tensor, unfused_maps: Maps
) -> None:
    teacher, student = tiny_vit(1, name), tiny_vit(2, name)
    theirs = unfused_maps(teacher, images)
    expected = with_maps(student, {layer: theirs[layer] for layer in chosen}, images)
    alone = student(images)
    actual = AttentionTransfer(teacher, student, [Copy(layers=layers)])(images).logits
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(actual, alone, atol=1e-2)


def test_a_wider_teacher_can_be_copied(tiny_vit: Build, images: Tensor, unfused_maps: Maps) -> None:
    teacher, student = tiny_vit(1, embed_dim=48), tiny_vit(2)
    expected = with_maps(student, dict(enumerate(unfused_maps(teacher, images))), images)
    actual = AttentionTransfer(teacher, student, [Copy()])(images).logits
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("parts", ["qk", "q", "k", "v"])
@pytest.mark.parametrize(("heads", "chosen"), [(None, [0, 1, 2]), ([0, -1], [0, 2]), (1, [2])])
def test_only_the_chosen_parts_and_heads_are_the_teachers(
    parts: Any, heads: Any, chosen: list[int], tiny_vit: Build, images: Tensor
) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    expected = with_operands(teacher, student, parts, chosen, images)
    actual = AttentionTransfer(teacher, student, [Copy(parts=parts, heads=heads)])(images).logits
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def call(scale: float, dtype: torch.dtype = torch.float32, mask: Tensor | None = None) -> AttentionCall:
    q, k, v = (torch.randn(2, 3, 4, 5, dtype=dtype) for _ in range(3))
    return AttentionCall(q, k, v, mask, scale, 0)


def test_heads_copied_from_a_teacher_with_another_scale_have_its_maps() -> None:
    student, teacher = call(0.3), call(0.9)
    mixed = Copy(heads=[1]).operands(student, teacher)
    torch.testing.assert_close(mixed.maps()[:, 1], teacher.maps()[:, 1])
    torch.testing.assert_close(mixed.maps()[:, [0, 2]], student.maps()[:, [0, 2]])
    assert torch.equal(mixed.v, student.v)


def test_a_copied_call_brings_the_teachers_scale_and_bias_and_not_the_students() -> None:
    student, teacher = call(0.3, mask=torch.randn(1, 3, 4, 4)), call(0.9, mask=torch.randn(1, 3, 4, 4))
    copied = Copy().operands(student, teacher)
    torch.testing.assert_close(copied.maps(), teacher.maps())
    assert torch.equal(copied.v, student.v)


@pytest.mark.parametrize("heads", [None, [0]])
@pytest.mark.parametrize("parts", ["qk", "q", "k", "v"])
def test_a_teacher_of_another_precision_is_taken_in_the_students(parts: Any, heads: Any) -> None:
    bias = None if heads else torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    teacher = replace(call(0.4, torch.float64), mask=bias)
    copied = Copy(parts=parts, heads=heads).operands(call(0.4), teacher)
    assert {copied.q.dtype, copied.k.dtype, copied.v.dtype} == {torch.float32}
    assert copied.mask is None or copied.mask.dtype == torch.float32


@pytest.mark.parametrize("rule", [Copy(parts="q"), Copy(parts="v"), Copy(heads=[0])])
def test_mixing_operands_of_other_head_dimensions_is_refused(rule: Copy, tiny_vit: Build) -> None:
    with pytest.raises(UserError, match=r"head dimension 16 .* and 8"):
        AttentionTransfer(tiny_vit(1, embed_dim=48), tiny_vit(2), [rule])


def test_some_heads_of_a_model_with_a_bias_are_refused(tiny_vit: Build, images: Tensor) -> None:
    name = "vit_relpos_small_patch16_224"
    with pytest.raises(UserError, match="some heads only is not supported"):
        AttentionTransfer(tiny_vit(1, name), tiny_vit(2, name), [Copy(heads=[0])])(images)


def test_the_students_own_queries_and_keys_are_not_trained(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    AttentionTransfer(tiny_vit(1), student, [Copy()])(images).logits.square().sum().backward()
    for block in student.blocks:
        assert block.attn.qkv.weight.grad[:48].abs().max() == 0  # rows of q and k
        assert block.attn.qkv.weight.grad[48:].abs().max() > 0


def test_rows_of_queries_and_keys_that_are_copied_are_named_as_unused(tiny_vit: Build) -> None:
    student = tiny_vit(2)
    qkv = student.blocks[1].attn.qkv
    (weight, rows), (bias, rows_of_bias) = AttentionTransfer(tiny_vit(1), student, [Copy(layers=[1])]).unused_rows()
    assert weight is qkv.weight
    assert bias is qkv.bias
    assert weight[rows].shape == (48, 24)
    assert bias[rows_of_bias].shape == (48,)
    for rule in (Copy(parts="v"), Copy(heads=[0]), Distill()):
        assert AttentionTransfer(tiny_vit(1), tiny_vit(2), [rule]).unused_rows() == []


def gradients(tiny_vit: Build, images: Tensor, order: str, checkpointing: bool) -> list[Tensor]:
    """Gradients of one backward pass over several forwards, each by the transfer or of the student alone."""
    student = tiny_vit(2)
    student.set_grad_checkpointing(checkpointing)
    transfer = AttentionTransfer(tiny_vit(1), student, [Copy(layers=[0, 2])]).train()
    logits = [
        transfer(images + index).logits if kind == "transfer" else student(images + index)
        for index, kind in enumerate(order.split())
    ]
    torch.cat(logits).square().sum().backward()
    return [parameter.grad for parameter in student.parameters()]


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize(
    "order",
    ["transfer", "transfer transfer", "transfer alone", "alone transfer", "transfer alone transfer", "alone"],
)
def test_gradients_under_checkpointing_are_bitwise_those_without(
    order: str, use_reentrant: bool, tiny_vit: Build, images: Tensor, reentrant: Callable[[bool], None]
) -> None:
    """The backward pass runs the blocks again, and each must meet what it met in its own forward."""
    reentrant(use_reentrant)
    expected = gradients(tiny_vit, images, order, checkpointing=False)
    actual = gradients(tiny_vit, images, order, checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))


def test_checkpointed_steps_one_after_the_other_stay_right(tiny_vit: Build, images: Tensor) -> None:
    """Backward passes in another order than the forwards, and a student that runs by itself in between."""

    def run(checkpointing: bool) -> list[Tensor]:
        student = tiny_vit(2)
        student.set_grad_checkpointing(checkpointing)
        transfer = AttentionTransfer(tiny_vit(1), student, [Copy()]).train()
        first, second = transfer(images).logits, transfer(images + 1).logits
        student(images).sum().backward()
        first.square().sum().backward()
        second.square().sum().backward()
        student(images).sum().backward()
        return [parameter.grad for parameter in student.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))


def test_a_failed_forward_leaves_the_student_as_it_is_alone(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    expected = student(images)
    transfer = AttentionTransfer(tiny_vit(1), student, [Copy()])
    handle = student.head.register_forward_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        transfer(images)
    handle.remove()
    assert torch.equal(student(images), expected)
