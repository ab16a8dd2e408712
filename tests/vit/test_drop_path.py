from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from attention_transfer.errors import UserError
from attention_transfer.vit import SharedDropPath, set_drop_path

Build = Callable[..., Any]


def rates(model: Any) -> list[tuple[float, float]]:
    return [
        (getattr(block.drop_path1, "drop_prob", 0.0), getattr(block.drop_path2, "drop_prob", 0.0))
        for block in model.blocks
    ]


class Sharing:
    """Two models with shared masks, and the step that they are in."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        self.masks: list[Tensor] | None = None
        self.shared = SharedDropPath(student, teacher, lambda: self.masks)

    @contextmanager
    def step(self, images: Tensor) -> Iterator[None]:
        self.masks = self.shared.draw(len(images), images.device)
        yield
        self.masks = None


@pytest.fixture
def pair(tiny_vit: Build) -> tuple[Any, Any]:
    """A student that drops half of its last branches, and a teacher of the same weights that drops none."""
    teacher = tiny_vit()
    student = copy.deepcopy(teacher)
    set_drop_path(student, 0.5)
    return student.train(), teacher


def test_rates_grow_linearly_from_zero(tiny_vit: Build) -> None:
    model = tiny_vit(depth=5)
    set_drop_path(model, 0.4)
    expected = [0.0, 0.1, 0.2, 0.3, 0.4]
    assert [rate for rate, _ in rates(model)] == pytest.approx(expected)
    assert [rate for _, rate in rates(model)] == pytest.approx(expected)


def test_rate_zero_takes_drop_path_off(tiny_vit: Build, images: Tensor) -> None:
    model = tiny_vit(drop_path_rate=0.9).train()
    set_drop_path(model, 0.0)
    assert torch.equal(model(images), model.eval()(images))


def test_a_model_without_such_branches_is_refused() -> None:
    with pytest.raises(UserError, match="Linear has no supported attention"):
        set_drop_path(nn.Linear(2, 2), 0.1)
    other = VisionTransformer(image_size=8, patch_size=4, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8)
    with pytest.raises(UserError, match="VisionTransformer has no drop path that can be set; set drop_path to 0"):
        set_drop_path(other, 0.1)
    set_drop_path(other, 0.0)


def test_teacher_and_student_drop_the_same_branches_in_a_step(pair: tuple[Any, Any], images: Tensor) -> None:
    student, teacher = pair
    sharing = Sharing(student, teacher)
    outputs = []
    for _ in range(3):
        with sharing.step(images):
            outputs.append(student(images))
            torch.testing.assert_close(teacher(images), outputs[-1])
    # New masks at every step, and they do drop something.
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], teacher(images))


def test_without_sharing_the_two_disagree(pair: tuple[Any, Any], images: Tensor) -> None:
    student, teacher = pair
    set_drop_path(teacher, 0.5)
    assert not torch.allclose(student(images), teacher.train()(images))


def test_masks_drop_at_the_students_rate_and_keep_the_mean(pair: tuple[Any, Any]) -> None:
    student, teacher = pair
    sharing = Sharing(student, teacher)
    ones = torch.ones(4000, 1, 1)
    with sharing.step(ones):
        values = [teacher.blocks[layer].drop_path1(ones).flatten() for layer in range(3)]
    assert torch.equal(values[0], torch.ones(4000))
    for value, rate in zip(values[1:], (0.25, 0.5), strict=True):
        assert sorted(set(value.tolist())) == pytest.approx([0.0, 1 / (1 - rate)])
        assert (value == 0).double().mean().item() == pytest.approx(rate, abs=0.04)


def test_a_branch_that_is_always_dropped_is_zero_as_in_timm(tiny_vit: Build) -> None:
    student, ones = tiny_vit(drop_path_rate=1.0).train(), torch.ones(3, 1, 1)
    assert torch.equal(student.blocks[-1].drop_path1(ones), torch.zeros(3, 1, 1))
    with Sharing(student, tiny_vit()).step(ones):
        assert torch.equal(student.blocks[-1].drop_path1(ones), torch.zeros(3, 1, 1))


def test_the_two_branches_of_a_block_are_dropped_independently(pair: tuple[Any, Any]) -> None:
    student, teacher = pair
    sharing = Sharing(student, teacher)
    ones = torch.ones(400, 1, 1)
    with sharing.step(ones):
        block = student.blocks[2]
        assert not torch.equal(block.drop_path1(ones), block.drop_path2(ones))


def test_outside_a_step_both_models_behave_as_before(pair: tuple[Any, Any], images: Tensor) -> None:
    student, teacher = pair
    torch.manual_seed(1)
    expected = student(images), teacher(images)
    sharing = Sharing(student, teacher)
    with sharing.step(images):
        student(images)
    torch.manual_seed(1)
    assert torch.equal(student(images), expected[0])
    assert torch.equal(teacher(images), expected[1])


def test_removing_the_handles_leaves_nothing(
    pair: tuple[Any, Any], tapped: Callable[[nn.Module], list[str]], images: Tensor
) -> None:
    student, teacher = pair
    sharing = Sharing(student, teacher)
    assert tapped(student)
    for handle in sharing.shared.handles:
        handle.remove()
    assert tapped(student) == tapped(teacher) == []


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_under_checkpointing_are_those_without(
    use_reentrant: bool, pair: tuple[Any, Any], images: Tensor, reentrant: Callable[[bool], None]
) -> None:
    """Checkpointing runs the blocks again in the backward pass, and there they must meet the masks of the step."""
    reentrant(use_reentrant)
    original, teacher = pair
    results = []
    for checkpointing in (False, True):
        student = copy.deepcopy(original)
        student.set_grad_checkpointing(checkpointing)
        sharing = Sharing(student, teacher)
        torch.manual_seed(1)
        with sharing.step(images):
            output = student(images)
            output.square().sum().backward()
        results.append([output.detach(), *(parameter.grad for parameter in student.parameters())])
    torch.testing.assert_close(results[1], results[0])


def test_models_of_other_depths_cannot_share(tiny_vit: Build) -> None:
    with pytest.raises(UserError, match="same depth"):
        SharedDropPath(tiny_vit(depth=2), tiny_vit(depth=3), lambda: None)
