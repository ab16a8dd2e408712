"""Rules on the student's own weights and features, against numpy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from attention_transfer.errors import UserError
from attention_transfer.transfer import BSS, L2SP, AttentionTransfer, Copy, Distill, FeatureKD, LogitKD, Seen

Array = NDArray[np.float64]
Build = Callable[..., Any]
Weights = dict[str, Array]


def array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().double().numpy())


def weights(model: nn.Module) -> Weights:
    return {name: array(parameter).copy() for name, parameter in model.named_parameters()}


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    """As if it had been trained."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)


def half_squares(now: Weights, start: Weights, *, head: float, beginning: str = "head.") -> float:
    """Half the squared distance from the start, and from 0 for the head."""
    heads = {name for name in now if name.startswith(beginning)}
    assert heads
    own = sum(float((now[name] ** 2).sum()) for name in heads)
    return (sum(float(((now[name] - start[name]) ** 2).sum()) for name in now.keys() - heads) + head * own) / 2


# --- L2SP ---


@pytest.mark.parametrize("head", [0.0, 1.0, 2.5])
def test_weights_are_kept_near_their_start_and_those_of_the_head_near_zero(
    head: float, tiny_vit: Build, images: Tensor
) -> None:
    student = tiny_vit(2)
    start = weights(student)
    transfer = AttentionTransfer(None, student, [L2SP(head=head)])
    disturb(student)
    expected = half_squares(weights(student), start, head=head)
    assert transfer(images).losses["l2sp"].item() == pytest.approx(expected, rel=1e-5)
    assert transfer.teacher is None


def hugging_face() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=3, num_labels=5, **sizes)
    return transformers.ViTForImageClassification(config)


def torchvision_vit() -> Any:
    return VisionTransformer(8, 4, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=48, num_classes=5)


@pytest.mark.parametrize(("build", "beginning"), [(hugging_face, "classifier."), (torchvision_vit, "heads.")])
def test_every_librarys_head_is_known(build: Callable[[], Any], beginning: str, images: Tensor) -> None:
    student = build()
    disturb(student)  # torchvision's head begins with 0
    start = weights(student)
    transfer = AttentionTransfer(None, student, [L2SP(head=3.0)])
    disturb(student)
    expected = half_squares(weights(student), start, head=3.0, beginning=beginning)
    loss = transfer(images.expand(-1, 3, -1, -1)).losses["l2sp"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_at_the_start_only_the_head_counts(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    expected = 0.5 * sum(float((array(p) ** 2).sum()) for p in student.head.parameters())
    assert AttentionTransfer(None, student, [L2SP()])(images).losses["l2sp"].item() == pytest.approx(expected, rel=1e-5)
    assert AttentionTransfer(None, student, [L2SP(head=0.0)])(images).losses["l2sp"].item() == 0


def test_its_gradient_is_the_way_that_was_gone(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    start = weights(student)
    transfer = AttentionTransfer(None, student, [L2SP(head=2.0)])
    disturb(student)
    transfer(images).losses["l2sp"].backward()
    for name, parameter in student.named_parameters():
        now = array(parameter)
        expected = 2.0 * now if name.startswith("head.") else now - start[name]
        np.testing.assert_allclose(array(parameter.grad), expected, rtol=1e-5, atol=1e-6)


def test_frozen_weights_are_left_out(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    start = weights(student)
    transfer = AttentionTransfer(None, student, [L2SP()])
    disturb(student)
    student.blocks[0].requires_grad_(False)
    student.head.bias.requires_grad_(False)
    now = {name: array(p) for name, p in student.named_parameters() if p.requires_grad}
    assert len(now) < len(start)
    loss = transfer(images).losses["l2sp"]
    loss.backward()
    assert loss.item() == pytest.approx(half_squares(now, start, head=1.0), rel=1e-5)
    assert all(p.grad is None for p in student.blocks[0].parameters())


def test_the_start_stays_that_of_its_making_through_steps_and_copies(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    disturb(student)
    start = weights(student)
    transfer = AttentionTransfer(None, student, [L2SP(weight=0.1), BSS()])
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        output = transfer(images)
        output.total(output.logits.square().mean()).backward()
        optimizer.step()
    expected = half_squares(weights(student), start, head=1.0)
    assert expected > half_squares(start, start, head=0.0)
    assert transfer(images).losses["l2sp"].item() == pytest.approx(expected, rel=1e-5)
    twin = copy.deepcopy(transfer)
    assert twin(images).losses["l2sp"].item() == pytest.approx(expected, rel=1e-5)
    disturb(twin.student)
    moved = half_squares(weights(twin.student), start, head=1.0)
    assert twin(images).losses["l2sp"].item() == pytest.approx(moved, rel=1e-5)
    assert copy.deepcopy(twin)(images).losses["l2sp"].item() == pytest.approx(moved, rel=1e-5)
    assert transfer(images).losses["l2sp"].item() == pytest.approx(expected, rel=1e-5)


def test_the_start_follows_the_student_to_another_precision(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    start = weights(student)
    transfer = AttentionTransfer(None, student, [L2SP()]).double()
    disturb(student)
    expected = half_squares(weights(student), start, head=1.0)
    assert transfer(images.double()).losses["l2sp"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("wrap", [lambda model: torch.compile(model, backend="eager")], ids=["compiled"])
def test_the_head_of_a_wrapped_student_is_known_too(
    wrap: Callable[[Any], Any], tiny_vit: Build, images: Tensor
) -> None:
    student = tiny_vit(2)
    transfer = AttentionTransfer(None, wrap(student), [L2SP(head=2.0)])
    start = weights(student)
    disturb(student)
    loss = transfer(images).losses["l2sp"]
    assert loss.item() == pytest.approx(half_squares(weights(student), start, head=2.0), rel=1e-5)


@pytest.mark.parametrize("head", [-0.1, float("nan"), float("inf")])
def test_a_factor_of_the_head_that_is_none_is_refused(head: float) -> None:
    with pytest.raises(UserError, match=rf"L2SP\.head is {head}; give a finite number of at least 0"):
        L2SP(head=head)


# --- BSS ---


def smallest(features: Array, k: int) -> float:
    """Σ of the k smallest squared singular values."""
    return float((np.sort(np.linalg.svd(features, compute_uv=False))[:k] ** 2).sum())


@torch.no_grad()
def features_of(model: Any, images: Tensor) -> Array:
    """What enters the head of a copy, (B, width)."""
    found: list[Array] = []
    plain = copy.deepcopy(model)
    plain.head.register_forward_pre_hook(lambda module, args: found.append(array(args[0])))
    plain(images)
    return found[0]


def shrunk(features: Tensor, k: int) -> Tensor:
    seen = Seen(student=nn.Linear(1, 1), start={}, student_logits=torch.zeros(1, 1), features=features)
    return BSS(k=k).loss(seen, None)


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_the_smallest_singular_values_of_a_batchs_features_are_pressed(k: int, tiny_vit: Build, images: Tensor) -> None:
    """Four images have four; of more than there are, all count."""
    student = tiny_vit(2)
    expected = smallest(features_of(student, images), k)
    output = AttentionTransfer(None, student, [BSS(k=k, weight=0.5)])(images)
    assert output.losses["bss"].item() == pytest.approx(expected, rel=1e-4)
    assert output.total(torch.tensor(1.0)).item() == pytest.approx(1 + 0.5 * expected, rel=1e-4)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)], ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_its_gradient_is_that_of_finite_differences(k: int, shape: tuple[int, int]) -> None:
    features = torch.randn(shape, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(shrunk(features, k), features)
    expected, step = np.zeros(shape), 1e-5
    for place in np.ndindex(*shape):
        nudge = np.zeros(shape)
        nudge[place] = step
        ahead, behind = (smallest(array(features) + sign * nudge, k) for sign in (1, -1))
        expected[place] = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(array(gradient), expected, rtol=1e-3, atol=1e-4)


def test_steps_on_it_shrink_the_smallest_and_train_the_backbone(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    transfer = AttentionTransfer(None, student, [BSS(weight=1.0)]).train()
    before = smallest(features_of(student, images), 1)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        transfer(images).total(torch.zeros(())).backward()
        optimizer.step()
    assert smallest(features_of(student, images), 1) < before
    assert student.blocks[0].attn.qkv.weight.grad.abs().max() > 0
    assert student.head.weight.grad is None  # it comes after the features


def test_a_student_without_a_head_is_refused(tiny_vit: Build) -> None:
    with pytest.raises(UserError, match="VisionTransformer has no linear classification layer whose input"):
        AttentionTransfer(None, tiny_vit(2, num_classes=0), [BSS()])


@pytest.mark.parametrize("k", [0, -1, 1.5, float("nan")])
def test_a_number_of_values_that_is_none_is_refused(k: Any) -> None:
    with pytest.raises(UserError, match=rf"BSS\.k is {k}; give a whole number of at least 1"):
        BSS(k=k)


# --- Both ---


def test_they_stand_beside_every_other_rule(tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    others = [Copy(layers=[0]), Distill(layers=[1]), LogitKD()]
    start = weights(student)
    without = AttentionTransfer(teacher, copy.deepcopy(student), others)(images)
    transfer = AttentionTransfer(teacher, student, [BSS(), *others, L2SP(), FeatureKD()])
    output = transfer(images)
    assert torch.equal(output.logits, without.logits)
    assert {name: output.losses[name] for name in without.losses} == without.losses
    assert set(output.losses) == {"bss", "distill", "logitkd", "l2sp", "featurekd"}
    assert output.losses["l2sp"].item() == pytest.approx(half_squares(start, start, head=1.0), rel=1e-5)
    # The features are those of the student that attends where the teacher attends.
    alone = AttentionTransfer(None, copy.deepcopy(student), [BSS()])(images).losses["bss"]
    assert output.losses["bss"].item() != pytest.approx(alone.item(), rel=1e-3)


def test_a_teacher_that_nothing_reads_is_left_alone(
    tiny_vit: Build, images: Tensor, tapped: Callable[[nn.Module], list[str]]
) -> None:
    teacher = tiny_vit(1).train()
    transfer = AttentionTransfer(teacher, tiny_vit(2), [L2SP(), BSS()])
    transfer(images)
    assert transfer.teacher is None
    assert tapped(teacher) == []
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_the_defaults_are_the_papers_weights(tiny_vit: Build, images: Tensor) -> None:
    output = AttentionTransfer(None, tiny_vit(2), [L2SP(), BSS()])(images)
    assert output.weights == {"l2sp": 0.01, "bss": 0.001}
