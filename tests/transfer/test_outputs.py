"""Distillation of logits and of features, against formulas in float64."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.transfer import BSS, AttentionTransfer, Copy, Distill, FeatureKD, LogitKD
from attention_transfer.vit import Pairing

Array = NDArray[np.float64]
Build = Callable[..., Any]
Tapped = Callable[[nn.Module], list[str]]


def array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().double().numpy())


@torch.no_grad()
def scores(model: Any, images: Tensor) -> Array:
    """Class logits of a copy in eval mode, (B, classes)."""
    return array(copy.deepcopy(model).eval()(images))


@torch.no_grad()
def streams(model: Any, images: Tensor) -> list[Array]:
    """What each block of a copy in eval mode puts out, (B, N, width)."""
    found: list[Array] = []
    plain = copy.deepcopy(model).eval()
    for block in plain.blocks:
        block.register_forward_hook(lambda module, args, output: found.append(array(output)))
    plain(images)
    return found


def soft(student: Array, teacher: Array, temperature: float) -> float:
    p_s, p_t = (scipy.special.softmax(x / temperature, axis=-1) for x in (student, teacher))
    return float(scipy.special.rel_entr(p_t, p_s).sum(axis=-1).mean() * temperature**2)


def hard(student: Array, teacher: Array) -> float:
    chosen = teacher.argmax(axis=-1)
    return float(-scipy.special.log_softmax(student, axis=-1)[np.arange(len(chosen)), chosen].mean())


def normalised(tokens: Array) -> Array:
    """Layer norm without parameters."""
    return np.asarray((tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-5))


def projection(transfer: AttentionTransfer, layer: int) -> tuple[Array, Array]:
    """Weight and bias of the linear projection of a block."""
    own = {name.split("featurekd.")[1]: p for name, p in transfer.named_parameters() if "featurekd." in name}
    return array(own[f"{layer}.weight"]), array(own[f"{layer}.bias"])


def feature_distance(transfer: AttentionTransfer, student: Array, teacher: Array, layer: int) -> float:
    weight, bias = projection(transfer, layer)
    return float(((student @ weight.T + bias - normalised(teacher)) ** 2).mean())


def beside(transfer: AttentionTransfer) -> dict[str, nn.Parameter]:
    """What is trained beside the student."""
    return {name: p for name, p in transfer.named_parameters() if not name.startswith("student.")}


# --- LogitKD ---


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_distillation_is_the_divergence_at_a_temperature_times_its_square(
    temperature: float, tiny_vit: Build, images: Tensor
) -> None:
    teacher, student = tiny_vit(1, embed_dim=48, depth=2), tiny_vit(2)
    expected = soft(scores(student, images), scores(teacher, images), temperature)
    output = AttentionTransfer(teacher, student, [LogitKD(temperature=temperature)])(images)
    assert list(output.losses) == ["logitkd"]
    assert output.losses["logitkd"].item() == pytest.approx(expected, rel=1e-5)


def test_the_default_is_soft_at_a_temperature_of_four(tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    expected = soft(scores(student, images), scores(teacher, images), 4.0)
    assert AttentionTransfer(teacher, student, [LogitKD()])(images).losses["logitkd"].item() == pytest.approx(
        expected, rel=1e-5
    )


def test_hard_distillation_is_the_cross_entropy_with_the_teachers_choice(tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    t = scores(teacher, images)
    assert len(set(t.argmax(axis=-1))) > 1  # a class that is the same for all images would hide a wrong index
    loss = AttentionTransfer(teacher, student, [LogitKD(kind="hard")])(images).losses["logitkd"]
    assert loss.item() == pytest.approx(hard(scores(student, images), t), rel=1e-5)


def test_the_gradient_of_soft_distillation_is_the_difference_of_the_probabilities(
    tiny_vit: Build, images: Tensor
) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    p_s, p_t = (scipy.special.softmax(scores(model, images) / 2, axis=-1) for model in (student, teacher))
    output = AttentionTransfer(teacher, student, [LogitKD(temperature=2.0)])(images)
    (gradient,) = torch.autograd.grad(output.losses["logitkd"], output.logits)
    np.testing.assert_allclose(array(gradient), 2.0 * (p_s - p_t) / len(images), atol=1e-6)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_gradient_reaches_the_student_and_not_the_teacher(kind: Any, tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    transfer = AttentionTransfer(teacher, student, [LogitKD(kind=kind)]).train()
    transfer(images).losses["logitkd"].backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in student.parameters())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert beside(transfer) == {}


def test_a_student_with_its_teachers_weights_has_no_soft_loss(tiny_vit: Build, images: Tensor) -> None:
    teacher = tiny_vit(1)
    student = copy.deepcopy(teacher)
    loss = AttentionTransfer(teacher, student, [LogitKD()])(images).losses["logitkd"]
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.head.weight.grad.abs().max() < 1e-6


def test_the_teacher_classifies_in_eval_mode_what_it_was_made_for(tiny_vit: Build, images: Tensor) -> None:
    """It has dropout, is handed over in train mode, and knows images of another normalisation."""
    overlay = {"mean": (0.25,) * 3, "std": (0.125,) * 3}
    teacher = tiny_vit(1, proj_drop_rate=0.5, pretrained_cfg_overlay=overlay).train()
    student = tiny_vit(2)  # 0.5 and 0.5
    theirs = (images * 0.5 + 0.5 - 0.25) / 0.125
    expected = soft(scores(student, images), scores(teacher, theirs), 4.0)
    transfer = AttentionTransfer(teacher, student, [LogitKD()])
    for _ in range(2):
        assert transfer(images).losses["logitkd"].item() == pytest.approx(expected, rel=1e-4)
        transfer.train()


def test_a_copy_in_an_early_block_does_not_cut_the_teachers_forward_short(tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    t = scores(teacher, images)
    copied = AttentionTransfer(teacher, copy.deepcopy(student), [Copy(layers=[0])])(images).logits
    output = AttentionTransfer(teacher, student, [Copy(layers=[0]), LogitKD()])(images)
    assert torch.equal(output.logits, copied)
    assert output.losses["logitkd"].item() == pytest.approx(soft(array(copied), t, 4.0), rel=1e-5)


def test_distilled_attention_and_distilled_logits_do_not_change_each_other(tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    rules: list[Any] = [Distill(layers=[0], weight=3.0), LogitKD(), LogitKD(kind="hard", weight=0.5)]
    alone = [
        AttentionTransfer(teacher, copy.deepcopy(student), [rule])(images).losses[rule.name].item() for rule in rules
    ]
    output = AttentionTransfer(teacher, student, rules)(images)
    assert list(output.losses) == ["distill", "logitkd", "logitkd_2"]
    assert [loss.item() for loss in output.losses.values()] == pytest.approx(alone, rel=1e-6)
    total = 2.0 + 3.0 * alone[0] + alone[1] + 0.5 * alone[2]
    assert output.total(torch.tensor(2.0)).item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("classes", [0, 7])
def test_a_teacher_of_other_classes_is_refused_with_both_numbers(classes: int, tiny_vit: Build) -> None:
    with pytest.raises(UserError, match=rf"teacher vit_tiny_patch16_224 has {classes} and the student 5; take"):
        AttentionTransfer(tiny_vit(1, num_classes=classes), tiny_vit(2), [LogitKD()])


def test_two_networks_without_heads_have_no_logits_to_distil(tiny_vit: Build) -> None:
    with pytest.raises(UserError, match="LogitKD"):
        AttentionTransfer(tiny_vit(1, num_classes=0), tiny_vit(2, num_classes=0), [LogitKD()])


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=rf"LogitKD\.temperature is {temperature}; give a"):
        LogitKD(temperature=temperature)


def test_another_kind_than_soft_and_hard_is_refused() -> None:
    kind: Any = "firm"
    with pytest.raises(UserError, match=r"LogitKD\.kind is 'firm'"):
        LogitKD(kind=kind)


# --- FeatureKD ---


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [(None, [0, 1, 2]), ([-1], [2]), ([0, 2], [0, 2]), ("every 2", [0, 2]), ("first 2", [0, 1]), (1, [2])],
)
@pytest.mark.parametrize("width", [24, 48])
def test_features_are_projected_and_compared_with_normalised_ones_summed_over_blocks(
    width: int, layers: Any, chosen: list[int], tiny_vit: Build, images: Tensor
) -> None:
    teacher, student = tiny_vit(1, embed_dim=width), tiny_vit(2)
    t, s = streams(teacher, images), streams(student, images)
    transfer = AttentionTransfer(teacher, student, [FeatureKD(layers=layers)])
    expected = np.mean([feature_distance(transfer, s[i], t[i], i) for i in chosen])
    assert transfer(images).losses["featurekd"].item() == pytest.approx(expected, rel=1e-5)
    assert {tuple(p.shape) for p in beside(transfer).values()} == {(width, 24), (width,)}
    assert len(beside(transfer)) == 2 * len(chosen)


@pytest.mark.parametrize(
    ("pairing", "theirs"),
    [(Pairing(), [1, 3, 5]), (Pairing(layers="last"), [3, 4, 5]), (Pairing(layers=[0, 0, -1]), [0, 0, 5])],
    ids=["relative", "last", "list"],
)
def test_blocks_of_a_deeper_teacher_are_paired_as_attention_is(
    pairing: Pairing, theirs: list[int], tiny_vit: Build, images: Tensor
) -> None:
    teacher, student = tiny_vit(1, depth=6), tiny_vit(2)
    t, s = streams(teacher, images), streams(student, images)
    transfer = AttentionTransfer(teacher, student, [FeatureKD()], pairing=pairing)
    expected = np.mean([feature_distance(transfer, s[mine], t[other], mine) for mine, other in enumerate(theirs)])
    assert transfer(images).losses["featurekd"].item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_ends_at_the_distilled_block_and_at_the_student(tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    transfer = AttentionTransfer(teacher, student, [FeatureKD(layers=[1])]).train()
    transfer(images).losses["featurekd"].backward()
    for block in student.blocks[:2]:
        assert all(parameter.grad.abs().max() > 0 for parameter in block.parameters())
    assert all(parameter.grad is None for parameter in student.blocks[2].parameters())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())


def test_the_projections_are_trained_along(tiny_vit: Build, images: Tensor) -> None:
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), [FeatureKD(weight=1.0)])
    before = {name: p.detach().clone() for name, p in beside(transfer).items()}
    optimizer = torch.optim.Adam(transfer.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        output = transfer(images)
        output.total(torch.zeros(())).backward()
        optimizer.step()
        losses.append(output.losses["featurekd"].item())
    assert losses[-1] < losses[0] / 2
    assert len(before) == 6
    assert not any(torch.equal(p, before[name]) for name, p in beside(transfer).items())


def test_the_projections_are_saved_apart_from_the_student(tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    transfer = AttentionTransfer(teacher, student, [FeatureKD()])
    expected = transfer(images).losses["featurekd"].item()
    other = AttentionTransfer(teacher, tiny_vit(3), [FeatureKD()])
    other.load_state_dict(transfer.state_dict())
    assert other(images).losses["featurekd"].item() == expected
    assert set(student.state_dict()) == set(tiny_vit(3).state_dict())


def test_a_deep_copy_keeps_the_projections_as_its_own(tiny_vit: Build, images: Tensor) -> None:
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), [FeatureKD(), Distill()])
    with torch.no_grad():
        for parameter in beside(transfer).values():
            parameter.mul_(1.5)
    expected = transfer(images).losses["featurekd"].item()
    twin = copy.deepcopy(transfer)
    assert twin(images).losses["featurekd"].item() == expected
    with torch.no_grad():
        for parameter in beside(twin).values():
            parameter.zero_()
    assert twin(images).losses["featurekd"].item() != expected
    assert transfer(images).losses["featurekd"].item() == expected


@pytest.mark.parametrize("rules", [[FeatureKD()], [FeatureKD(layers=[0, 1]), LogitKD(), Distill(), Copy(parts="v")]])
def test_gradients_under_checkpointing_are_those_without(rules: list[Any], tiny_vit: Build, images: Tensor) -> None:
    teacher, results = tiny_vit(1), []
    for checkpointing in (False, True):
        student = tiny_vit(2)
        student.set_grad_checkpointing(checkpointing)
        torch.manual_seed(3)  # the projections are random
        transfer = AttentionTransfer(teacher, student, rules).train()
        first, second = transfer(images), transfer(images + 1)
        (first.total(first.logits.square().sum()) - second.total(torch.zeros(()))).backward()
        losses = [*first.losses.values(), *second.losses.values()]
        results.append([*(loss.detach() for loss in losses), *(p.grad for p in transfer.parameters())])
    assert len(results[0]) > 2 * len(rules)
    torch.testing.assert_close(results[1], results[0])


def test_blocks_outside_the_student_are_named_with_both_bounds(tiny_vit: Build) -> None:
    with pytest.raises(UserError, match=r"^FeatureKD\.layers \[3\] do not exist; choose from -3 to 2"):
        AttentionTransfer(tiny_vit(1), tiny_vit(2), [FeatureKD(layers=[3])])
    with pytest.raises(UserError, match=r"^FeatureKD\.layers='last 4': choose a number from 1 to 3"):
        AttentionTransfer(tiny_vit(1), tiny_vit(2), [FeatureKD(layers="last 4")])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"img_size": 12}, r"a grid of \(3, 3\)"),
        ({"class_token": False, "global_pool": "avg"}, "take a student of the teacher's tokens"),
        ({"name": "vit_small_patch14_reg4_dinov2"}, "take a student of the teacher's tokens"),
    ],
    ids=["grid", "no class token", "registers"],
)
def test_a_teacher_of_other_tokens_is_refused(options: dict[str, Any], named: str, tiny_vit: Build) -> None:
    with pytest.raises(UserError, match=f"FeatureKD compares token by token.*{named}"):
        AttentionTransfer(tiny_vit(1, **options), tiny_vit(2), [FeatureKD()])


def test_a_pairing_that_leaves_a_block_alone_is_refused(tiny_vit: Build) -> None:
    teacher, last = tiny_vit(1, depth=2), Pairing(layers="last")
    with pytest.raises(UserError, match="block 0 of the student has no block of the teacher"):
        AttentionTransfer(teacher, tiny_vit(2), [FeatureKD()], pairing=last)
    AttentionTransfer(teacher, tiny_vit(2), [FeatureKD(layers=2)], pairing=last)


def test_features_do_not_depend_on_the_number_of_heads(tiny_vit: Build, images: Tensor) -> None:
    transfer = AttentionTransfer(tiny_vit(1, num_heads=6, embed_dim=48), tiny_vit(2), [FeatureKD()])
    assert transfer(images).losses["featurekd"].item() > 0


def test_a_backbone_of_transformers_can_be_the_teacher_of_features(tiny_vit: Build, images: Tensor) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48}
    teacher = transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, **sizes))
    assert AttentionTransfer(teacher, tiny_vit(2), [FeatureKD()])(images).losses["featurekd"].item() > 0


# --- Where the networks are when they are bound ---


def test_projections_are_made_in_the_students_precision(tiny_vit: Build, images: Tensor) -> None:
    transfer = AttentionTransfer(tiny_vit(1).double(), tiny_vit(2).double(), [FeatureKD()])
    assert transfer(images.double()).losses["featurekd"].item() > 0


def test_a_deep_copy_has_its_projections_in_the_same_precision(tiny_vit: Build, images: Tensor) -> None:
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), [FeatureKD()]).double()
    expected = transfer(images.double()).losses["featurekd"].item()
    assert copy.deepcopy(transfer)(images.double()).losses["featurekd"].item() == expected


def test_everything_moves_to_another_precision(tiny_vit: Build, images: Tensor) -> None:
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), [FeatureKD(), LogitKD()])
    single = transfer(images).losses
    double = transfer.double()(images.double()).losses
    for name, loss in single.items():
        assert double[name].item() == pytest.approx(loss.item(), rel=1e-4)


REFUSED: list[tuple[list[Any], int]] = [([LogitKD()], 7), ([FeatureKD(layers=[3])], 5), ([FeatureKD(), BSS()], 0)]


@pytest.mark.parametrize(("rules", "classes"), REFUSED)
def test_a_refused_pair_is_left_as_it_was(rules: Any, classes: int, tiny_vit: Build, tapped: Tapped) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2, num_classes=classes)
    with pytest.raises(UserError):
        AttentionTransfer(teacher, student, rules)
    gc.collect()
    assert tapped(student) == tapped(teacher) == []
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_release_leaves_nothing_on_either_model(tiny_vit: Build, images: Tensor, tapped: Tapped) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    transfer = AttentionTransfer(teacher, student, [FeatureKD(), LogitKD(), BSS()])
    transfer(images)
    assert {"blocks.0", "blocks.2", "head"} <= set(tapped(student))
    assert {"blocks.0", "blocks.2"} <= set(tapped(teacher))
    transfer.release()
    assert tapped(student) == tapped(teacher) == []


def test_two_rules_may_read_other_blocks(tiny_vit: Build, images: Tensor) -> None:
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), [FeatureKD(layers=[0]), FeatureKD(layers=[1, 2])])
    together = transfer(images).losses
    assert set(together) == {"featurekd", "featurekd_2"}
    assert transfer.networks is not None
    alone = AttentionTransfer(tiny_vit(1), tiny_vit(2), [FeatureKD(layers=[0])])
    assert alone.networks is not None
    state = {key: value for key, value in transfer.networks.state_dict().items() if ".featurekd." in f".{key}"}
    alone.networks.load_state_dict(state)
    torch.testing.assert_close(alone(images).losses["featurekd"], together["featurekd"])
