from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.transfer import AttentionTransfer, Distill

Build = Callable[..., Any]
Maps = Callable[[nn.Module, Tensor], list[Tensor]]


def cross_entropies(teacher: list[Tensor], student: list[Tensor], heads: list[int]) -> list[float]:
    """Per layer the mean over images, heads and rows, in float64."""
    return [
        float(-(p_t[:, heads].double().numpy() * np.log(p_s[:, heads].double().numpy())).sum(-1).mean())
        for p_t, p_s in zip(teacher, student, strict=True)
    ]


@pytest.mark.parametrize(
    ("layers", "heads", "chosen_layers", "chosen_heads"),
    [
        (None, None, [0, 1, 2], [0, 1, 2]),
        ([1], None, [1], [0, 1, 2]),
        (2, [0, -1], [1, 2], [0, 2]),
        ([0, 2], 1, [0, 2], [2]),
    ],
    ids=["all", "one layer", "last layers", "last head"],
)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_relpos_small_patch16_224"])
def test_loss_is_the_cross_entropy_of_the_maps_summed_over_layers(
    name: str,
    layers: Any,
    heads: Any,
    chosen_layers: list[int],
    chosen_heads: list[int],
    tiny_vit: Build,
    images: Tensor,
    unfused_maps: Maps,
) -> None:
    teacher, student = tiny_vit(1, name), tiny_vit(2, name)
    output = AttentionTransfer(teacher, student, [Distill(layers=layers, heads=heads)])(images)
    per_layer = cross_entropies(unfused_maps(teacher, images), unfused_maps(student, images), chosen_heads)
    assert output.losses["distill"].item() == pytest.approx(np.mean([per_layer[i] for i in chosen_layers]), rel=1e-5)


def test_a_teacher_of_another_width_distils(tiny_vit: Build, images: Tensor, unfused_maps: Maps) -> None:
    teacher, student = tiny_vit(1, embed_dim=48), tiny_vit(2)
    output = AttentionTransfer(teacher, student, [Distill()])(images)
    per_layer = cross_entropies(unfused_maps(teacher, images), unfused_maps(student, images), [0, 1, 2])
    assert output.losses["distill"].item() == pytest.approx(np.mean(per_layer), rel=1e-5)


def test_a_student_with_its_teachers_weights_is_at_the_minimum(
    tiny_vit: Build, images: Tensor, unfused_maps: Maps
) -> None:
    teacher = tiny_vit()
    student = copy.deepcopy(teacher)
    loss = AttentionTransfer(teacher, student, [Distill()])(images).losses["distill"]
    maps = unfused_maps(teacher, images)
    assert loss.item() == pytest.approx(
        np.mean(cross_entropies(maps, maps, [0, 1, 2])), rel=1e-5
    )  # the teacher's entropy
    loss.backward()
    # Not near 0 by chance: the same gradient of another student is larger by orders of magnitude.
    other = tiny_vit(5)
    AttentionTransfer(teacher, other, [Distill()])(images).losses["distill"].backward()
    largest = other.blocks[0].attn.qkv.weight.grad.abs().max()
    assert student.blocks[0].attn.qkv.weight.grad.abs().max() < 1e-4 * largest


def test_steps_on_the_loss_bring_the_students_maps_to_the_teachers(
    tiny_vit: Build, images: Tensor, unfused_maps: Maps
) -> None:
    def distance() -> float:
        pairs = zip(unfused_maps(teacher, images), unfused_maps(student, images), strict=True)
        return float(sum((t - s).abs().mean() for t, s in pairs))

    teacher, student = tiny_vit(1), tiny_vit(2)
    transfer = AttentionTransfer(teacher, student, [Distill(weight=1.0)])
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    before = distance()
    for _ in range(40):
        optimizer.zero_grad()
        transfer(images).total(torch.zeros(())).backward()
        optimizer.step()
    assert distance() < before / 2


def test_gradients_under_checkpointing_are_those_without(tiny_vit: Build, images: Tensor) -> None:
    teacher, gradients = tiny_vit(1), []
    for checkpointing in (False, True):
        student = tiny_vit(2)
        student.set_grad_checkpointing(checkpointing)
        output = AttentionTransfer(teacher, student, [Distill()]).train()(images)
        output.total(output.logits.square().sum()).backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_refused_because_it_would_train_nothing(
    tiny_vit: Build, images: Tensor, reentrant: Callable[[bool], None]
) -> None:
    reentrant(True)
    student = tiny_vit(2)
    student.set_grad_checkpointing(True)
    transfer = AttentionTransfer(tiny_vit(1), student, [Distill()]).train()
    with pytest.raises(UserError, match=r"re-entrant gradient checkpointing .*set_reentrant_ckpt\(False\)"):
        transfer(images)
    with torch.no_grad():  # nothing is to be trained there
        assert transfer(images).losses["distill"].item() > 0
