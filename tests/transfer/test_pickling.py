"""Pickles of students and of transfers behave as what they are of; and teachers in half precision."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_transfer.transfer import L2SP, AttentionTransfer, Copy, Distill, Guide
from attention_transfer.vit import Pairing

Build = Callable[..., Any]


def pickled(what: Any) -> Any:
    return pickle.loads(pickle.dumps(what))


def saved(what: Any) -> Any:
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [pickled, saved])
def test_a_transfer_comes_back_with_its_rules_and_its_start(
    again: Callable[[Any], Any], tiny_vit: Build, images: Tensor
) -> None:
    rules = [Copy(layers=[0]), Distill(layers=[1]), Guide(layers=[2]), L2SP()]
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), rules).train()
    with torch.no_grad():
        for parameter in transfer.student.parameters():
            parameter.add_(0.01)
    transfer.progress = 0.5
    twin = again(transfer)
    ours, theirs = transfer(images), twin(images)
    assert torch.equal(ours.logits, theirs.logits)
    assert {name: loss.item() for name, loss in ours.losses.items()} == {
        name: loss.item() for name, loss in theirs.losses.items()
    }
    assert [*ours.losses.values()][-1] > 0  # of L2SP, which counts from the start
    assert (twin.training, twin.progress) == (True, 0.5)
    assert not any(parameter.requires_grad for parameter in twin.teacher.parameters())
    theirs.total(torch.zeros(())).backward()
    assert all(parameter.grad is None for parameter in transfer.student.parameters())


def test_matched_heads_come_back(tiny_vit: Build, images: Tensor) -> None:
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), [Distill()], pairing=Pairing(heads="match"))
    losses = transfer(images).losses
    twin = pickled(transfer)
    assert torch.equal(twin.head_pairs.pairs, transfer.head_pairs.pairs)  # type: ignore[union-attr]
    assert twin(images).losses["distill"].item() == losses["distill"].item()


def test_a_bound_student_is_pickled_alone(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    expected = student(images)
    transfer = AttentionTransfer(tiny_vit(1), student, [Copy()])
    twin = saved(student)
    assert torch.equal(twin(images), expected)
    transfer(images)
    assert torch.equal(twin(images), expected)
    AttentionTransfer(tiny_vit(1), twin, [Distill()])(images).total(torch.zeros(())).backward()
    assert all(p.grad is not None for p in twin.blocks[0].attn.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", [Copy(), Distill(), Guide()], ids=lambda rule: type(rule).__name__)
def test_a_teacher_with_half_precision_weights_teaches_a_float32_student(
    rule: Any, dtype: torch.dtype, tiny_vit: Build, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="attention_transfer")
    expected = AttentionTransfer(tiny_vit(1), tiny_vit(2), [rule])(images)
    transfer = AttentionTransfer(tiny_vit(1).to(dtype), tiny_vit(2), [rule])
    output = transfer(images)
    assert f"the teacher runs in the precision of its weights, {dtype}" in caplog.text
    assert output.logits.dtype == torch.float32
    torch.testing.assert_close(output.logits, expected.logits, atol=0.1, rtol=0.1)
    for name, loss in output.losses.items():
        torch.testing.assert_close(loss, expected.losses[name], atol=0.05, rtol=0.1)
    output.total(output.logits.square().mean()).backward()
