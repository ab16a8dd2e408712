from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.vit import describe, initialise, student_from, student_like

Build = Callable[..., Any]
COMPONENTS: list[Literal["native", "standard"]] = ["native", "standard"]
FAMILIES = [
    "vit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "eva02_tiny_patch14_224",
    "beit_base_patch16_224",
    "vit_base_patch16_clip_224",
]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_has_the_teachers_shapes_and_none_of_its_weights(name: str, tiny_vit: Build) -> None:
    teacher = tiny_vit(name=name)
    student = student_like(teacher, num_classes=5)
    theirs, own = dict(teacher.named_parameters()), dict(student.named_parameters())
    assert {n: p.shape for n, p in own.items()} == {n: p.shape for n, p in theirs.items()}
    assert [n for n, p in own.items() if p.dim() > 1 and torch.equal(p, theirs[n])] == []
    assert describe(student).components == describe(teacher).components


@pytest.mark.parametrize("components", COMPONENTS)
def test_linear_layers_and_tokens_are_drawn_with_deviation_002(
    components: Literal["native", "standard"], tiny_vit: Build
) -> None:
    student: Any = student_like(tiny_vit(embed_dim=96), num_classes=10, components=components)
    for weight in (student.blocks[1].attn.qkv.weight, student.blocks[0].mlp.fc1.weight, student.head.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert weight.mean().item() == pytest.approx(0.0, abs=0.002)
    assert student.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)
    assert student.blocks[1].attn.qkv.bias.abs().max() == 0
    assert torch.equal(student.blocks[1].norm1.weight, torch.ones(96))


@pytest.mark.parametrize("components", COMPONENTS)
def test_students_are_reproducible_by_seed(components: Literal["native", "standard"], tiny_vit: Build) -> None:
    def student(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return state(student_like(teacher, num_classes=4, components=components))

    teacher = tiny_vit()
    assert equal(student(1), student(1))
    assert not equal(student(1), student(2))


@pytest.mark.parametrize("components", COMPONENTS)
def test_everything_is_trainable_and_the_frozen_teacher_is_untouched(
    components: Literal["native", "standard"], tiny_vit: Build
) -> None:
    teacher = tiny_vit().requires_grad_(False)
    before = state(teacher)
    student = student_like(teacher, num_classes=7, components=components)
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert equal(state(teacher), before)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert {p.data_ptr() for p in student.parameters()}.isdisjoint(p.data_ptr() for p in teacher.parameters())


def test_native_keeps_layer_scale_and_registers_and_standard_drops_them(tiny_vit: Build, images: Tensor) -> None:
    teacher = tiny_vit(name="vit_small_patch14_reg4_dinov2")
    native = student_like(teacher, num_classes=7)
    standard = student_like(teacher, num_classes=7, components="standard")
    assert describe(native).components == {"LayerScale", "registers"}
    assert (describe(standard).components, describe(standard).prefix_tokens) == (frozenset(), 1)
    assert native(images).shape == standard(images).shape == (4, 7)


def test_standard_has_the_teachers_size_and_input(tiny_vit: Build) -> None:
    teacher = tiny_vit(
        name="deit3_small_patch16_224", img_size=(8, 16), patch_size=(2, 4), pretrained_cfg_overlay={"mean": (0.1,)}
    )
    t, s = describe(teacher), describe(student_like(teacher, num_classes=7, components="standard"))
    assert (s.depth, s.heads, s.width, s.grid, s.image_size) == (t.depth, t.heads, t.width, t.grid, t.image_size)
    assert (s.channels, s.mean, s.std, s.classes) == (1, (0.1,), t.std, 7)


def test_standard_needs_a_class_token(tiny_vit: Build) -> None:
    with pytest.raises(UserError, match="no class token"):
        student_like(tiny_vit(class_token=False, global_pool="avg"), num_classes=5, components="standard")


def test_layer_scale_starts_where_a_fresh_model_has_it_and_not_where_the_teacher_is(tiny_vit: Build) -> None:
    student: Any = student_like(tiny_vit(init_values=1e-3), num_classes=5)
    torch.testing.assert_close(student.blocks[0].ls1.gamma.detach(), torch.full((24,), 1e-3))


def test_no_classes_leaves_the_head_out(tiny_vit: Build, images: Tensor) -> None:
    assert student_like(tiny_vit(), num_classes=0)(images).shape == (4, 24)
    assert student_from(tiny_vit(), num_classes=0)(images).shape == (4, 24)


def test_a_copied_student_keeps_the_backbone_exactly_and_gets_a_new_small_head(tiny_vit: Build) -> None:
    weights = tiny_vit().requires_grad_(False)
    student: Any = student_from(weights, num_classes=50)
    theirs, own = weights.state_dict(), student.state_dict()
    backbone = theirs.keys() - {"head.weight", "head.bias"}
    assert equal({name: own[name] for name in backbone}, {name: theirs[name] for name in backbone})
    assert own["head.weight"].shape == (50, 24)
    assert own["head.weight"].std().item() == pytest.approx(2e-5, rel=0.2)
    assert own["head.bias"].abs().max() == 0
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_training_a_copied_student_leaves_its_source_alone(tiny_vit: Build) -> None:
    weights = tiny_vit()
    before = state(weights)
    student = student_from(weights, num_classes=3)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert equal(state(weights), before)


def test_an_unknown_parameter_is_refused_by_name_and_not_left_at_the_teachers_value(tiny_vit: Build) -> None:
    teacher = copy.deepcopy(tiny_vit())
    teacher.blocks[1].mystery = nn.Parameter(torch.ones(3))
    with pytest.raises(UserError, match=r"no initialisation is known for blocks\.1\.mystery"):
        initialise(teacher)
    with pytest.raises(UserError, match=r"blocks\.1\.mystery"):
        student_like(teacher, num_classes=3)


def test_components_that_do_not_exist_are_refused(tiny_vit: Build) -> None:
    with pytest.raises(UserError, match="components is 'standart'; did you mean 'standard'"):
        student_like(tiny_vit(), num_classes=2, components="standart")  # type: ignore[arg-type]
