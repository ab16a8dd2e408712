from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError, UserErrors
from attention_transfer.transfer import AttentionRule, Copy, Distill, Guide
from attention_transfer.transfer.plan import Plan
from attention_transfer.vit import POOL, AttentionCall, Pairing, capture, check_transfer

Build = Callable[..., Any]
DINO = "vit_small_patch14_reg4_dinov2"
SIGLIP = "vit_base_patch16_siglip_224"


def calls_of(model: nn.Module, images: Tensor) -> dict[int, AttentionCall]:
    with capture(model) as calls, torch.no_grad():
        model(images)
    return {call.layer: call for call in calls}


# --- what is laid out ---


def test_rules_are_laid_out_by_the_students_layers(tiny_vit: Build) -> None:
    rules: list[AttentionRule] = [
        Distill(layers=[-1]),
        Copy(layers=[0]),
        Guide(layers=2),
        Distill(layers=[1]),
        Copy(parts="v"),
    ]
    plan = Plan(tiny_vit(1, depth=6), tiny_vit(2), rules, Pairing())
    assert [*plan.at] == [0, 1, 2]
    assert {bound.name: (bound.rule, bound.layers) for bound in plan.losses} == {
        "distill": (rules[0], (2,)),
        "guide": (rules[2], (1, 2)),
        "distill_2": (rules[3], (1,)),
    }
    assert {bound.name: (bound.rule, bound.layers) for bound in plan.replacing} == {
        "copy": (rules[1], (0,)),
        "copy_2": (rules[4], (0, 1, 2)),
    }
    assert [[bound.name for bound in layer.losses] for layer in plan.at.values()] == [
        [],
        ["guide", "distill_2"],
        ["distill", "guide"],
    ]
    assert [[bound.name for bound in layer.replacing] for layer in plan.at.values()] == [
        ["copy", "copy_2"],
        ["copy_2"],
        ["copy_2"],
    ]
    assert [layer.skips for layer in plan.at.values()] == ["qk", "", ""]
    assert plan.reads_values


@pytest.mark.parametrize(
    ("pairing", "depth_t", "depth_s", "rules", "expected"),
    [
        (Pairing(), 6, 3, [Distill()], {0: 1, 1: 3, 2: 5}),
        (Pairing(), 2, 3, [Distill(layers=[0, 2])], {0: 0, 2: 1}),
        (Pairing(layers="last"), 6, 3, [Distill()], {0: 3, 1: 4, 2: 5}),
        (Pairing(layers="last"), 2, 3, [Distill(layers=2)], {1: 0, 2: 1}),
        (Pairing(layers=[-1, 0, 4]), 6, 3, [Distill(), Copy(parts="v", layers=[1])], {0: 5, 1: 0, 2: 4}),
        (Pairing(layers=[2, 1, 0]), 3, 3, [Guide(layers=[0])], {0: 2}),
    ],
)
def test_each_layer_of_the_student_has_one_of_the_teacher(
    pairing: Pairing, depth_t: int, depth_s: int, rules: Any, expected: dict[int, int], tiny_vit: Build
) -> None:
    assert Plan(tiny_vit(1, depth=depth_t), tiny_vit(2, depth=depth_s), rules, pairing).teacher_layers == expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [([0, 0, 1], [False, True, True]), ([1, 0, 1], [False, True, True]), ("relative", [True] * 3)],
)
def test_a_teachers_attention_is_last_used_where_no_later_block_takes_it(
    layers: Any, expected: list[bool], tiny_vit: Build
) -> None:
    plan = Plan(tiny_vit(1), tiny_vit(2), [Distill()], Pairing(layers=layers))
    assert [layer.is_last_use for layer in plan.at.values()] == expected


def test_a_call_is_kept_as_the_one_row_that_is_read_unless_its_heads_are_to_be_matched(
    tiny_vit: Build, images: Tensor
) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    (call, *_) = calls_of(teacher, images).values()
    row = Plan(teacher, student, [Guide()], Pairing()).kept(call)
    torch.testing.assert_close(row.logits(), call.logits()[:, :, :1])
    assert Plan(teacher, student, [Guide()], Pairing(heads="match")).kept(call) is call
    assert Plan(teacher, student, [Guide(), Distill()], Pairing()).kept(call) is call


def test_the_pooling_head_is_a_layer_beside_the_blocks(tiny_vit: Build) -> None:
    rules: list[AttentionRule] = [Guide(query="pool"), Guide(query="mean", layers=[1])]
    plan = Plan(tiny_vit(1, SIGLIP, depth=6), tiny_vit(2, SIGLIP), rules, Pairing())
    assert [*plan.at] == [POOL, 1]
    assert plan.teacher_layers == {POOL: POOL, 1: 3}
    assert not plan.reads_values


@pytest.mark.parametrize("pairing", [Pairing(), Pairing(layers="last", heads="mean", registers="to class")])
def test_a_rule_gets_the_teachers_very_call_where_nothing_differs(
    pairing: Pairing, tiny_vit: Build, images: Tensor
) -> None:
    """Width is no part of a call's maps."""
    teacher = tiny_vit(1, embed_dim=48)
    plan = Plan(teacher, tiny_vit(2), [Copy(layers=[0]), Distill(layers=[1]), Guide(layers=[2])], pairing)
    calls = calls_of(teacher, images)
    (copy,), (distill, guide) = plan.replacing, plan.losses
    assert plan.teacher_call(calls, copy, 0) is calls[0]
    assert plan.teacher_call(calls, distill, 1) is calls[1]
    row = plan.teacher_call(calls, guide, 2)
    assert row.q.shape == (4, 3, 1, 16)
    assert torch.equal(row.logits(), calls[2].query_row("class").logits())


def test_each_rule_gets_its_own_reading_of_a_mapped_call(tiny_vit: Build, images: Tensor) -> None:
    teacher = tiny_vit(1, DINO, num_heads=6)
    rules: list[AttentionRule] = [Distill(), Guide(), Guide(query="mean")]
    plan = Plan(teacher, tiny_vit(2), rules, Pairing(heads="mean"))
    calls, kept = calls_of(teacher, images), [0, 5, 6, 7, 8]
    maps = calls[1].maps().unflatten(1, (3, 2)).mean(dim=2)[:, :, kept][..., kept]
    logits = calls[1].logits().unflatten(1, (3, 2)).mean(dim=2)[..., kept]
    distilled = plan.teacher_call(calls, plan.losses[0], 1).maps()
    torch.testing.assert_close(distilled, maps / maps.sum(dim=-1, keepdim=True))
    torch.testing.assert_close(plan.teacher_call(calls, plan.losses[1], 1).logits(), logits[:, :, :1])
    mean = plan.teacher_call(calls, plan.losses[2], 1).logits()
    torch.testing.assert_close(mean, logits[:, :, 5:].mean(dim=2, keepdim=True))


def test_matching_compares_all_the_teachers_heads_over_the_students_tokens(tiny_vit: Build, images: Tensor) -> None:
    teacher = tiny_vit(1, DINO, num_heads=4, depth=6)
    plan = Plan(teacher, tiny_vit(2), [Distill()], Pairing(heads="match"))
    calls, kept = calls_of(teacher, images), [0, 5, 6, 7, 8]
    maps = calls[3].maps()[:, :, kept][..., kept]
    torch.testing.assert_close(plan.whole_maps(calls, 1), maps / maps.sum(dim=-1, keepdim=True))
    paired = plan.teacher_call(calls, plan.losses[0], 1, torch.tensor([3, 0, 1])).maps()
    torch.testing.assert_close(paired, (maps / maps.sum(dim=-1, keepdim=True))[:, [3, 0, 1]])


# --- what is refused ---


@pytest.mark.parametrize(
    ("pairing", "teacher", "student", "rules", "message"),
    [
        (Pairing(), {}, {"num_heads": 2}, [Distill()], "heads 3 but the student has 2"),
        (Pairing(heads="mean"), {}, {"num_heads": 2}, [Distill()], "3 heads .* and 2 .* can't be grouped evenly"),
        (Pairing(), {}, {"reg_tokens": 2}, [Distill()], "some of the student's have no attention to take"),
        (Pairing(), {"class_token": False, "global_pool": "avg"}, {}, [Distill()], "no attention to take"),
        (Pairing(layers=[0, 1]), {}, {}, [Distill()], "one of the teacher's 3 blocks for each of the student's 3"),
        (Pairing(layers=[0, 1, 3]), {}, {}, [Copy(layers=[0])], "one of the teacher's 3 blocks"),
        (Pairing(layers=[0, 1, -4]), {}, {}, [Guide()], "one of the teacher's 3 blocks"),
        (Pairing(layers="last"), {"depth": 2}, {}, [Distill()], "block 0 of the student has no block of the teacher"),
        (
            Pairing(),
            {"img_size": 12},
            {},
            [Copy(parts="q")],
            "takes single operands or heads, which another patch grid",
        ),
        (Pairing(), {"img_size": 12}, {}, [Copy(heads=[0])], "takes single operands or heads"),
        (Pairing(), {"img_size": 12}, {}, [Distill(target="v")], "takes single operands or heads"),
        (
            Pairing(heads="mean"),
            {"num_heads": 6, "embed_dim": 48},
            {},
            [Distill(target="q")],
            "takes single operands or heads",
        ),
        (Pairing(registers="to class"), {"name": DINO}, {}, [Copy(parts="k")], "takes single operands or heads"),
        (
            Pairing(registers="to class"),
            {"name": DINO},
            {"class_token": False, "global_pool": "avg"},
            [Distill()],
            "needs a class token on both sides",
        ),
        (Pairing(), {}, {"in_chans": 3}, [Distill()], "channels 1 but the student has 3"),
    ],
)
def test_what_cannot_be_mapped_is_refused_in_a_sentence(
    pairing: Pairing, teacher: Any, student: Any, rules: Any, message: str, tiny_vit: Build
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Plan(tiny_vit(1, **teacher), tiny_vit(2, **student), rules, pairing)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("pairing", "teacher", "student", "rules"),
    [
        (Pairing(layers="last"), {"depth": 2}, {}, [Distill(layers=[1, 2])]),
        (Pairing(heads="match"), {}, {"num_heads": 2}, [Distill()]),
        (Pairing(), {"name": DINO}, {}, [Copy(parts="q"), Distill(target="v")]),
        (
            Pairing(),
            {"img_size": 12},
            {},
            [Copy(layers=[0]), Distill(layers=[1], heads=[0]), Guide(layers=[2], heads=1)],
        ),
        (Pairing(heads="mean"), {"num_heads": 3}, {"num_heads": 6, "embed_dim": 48}, [Copy(parts="v", heads=[5])]),
    ],
)
def test_what_can_be_mapped_is_not(pairing: Pairing, teacher: Any, student: Any, rules: Any, tiny_vit: Build) -> None:
    Plan(tiny_vit(1, **teacher), tiny_vit(2, **student), rules, pairing)


def test_every_reason_is_listed_at_once(tiny_vit: Build) -> None:
    teacher, student = tiny_vit(1, img_size=12, depth=2), tiny_vit(2, num_heads=2, reg_tokens=1)
    rules: list[AttentionRule] = [
        Distill(layers=[7]),
        Copy(parts="q"),
        Distill(layers=[0], target="k", weight=0.0),
        Guide(heads=9),
    ]
    with pytest.raises(UserErrors) as caught:
        Plan(teacher, student, rules, Pairing(layers="last"))
    for reason in (
        "heads 3 but the student has 2",
        "class, register",
        r"Distill.layers \[7\] do not exist",
        "head dimension 8 .* and 12",
        "Guide.heads=9",
    ):
        assert any(re.search(reason, message) for message in caught.value.messages), reason


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", DINO])
def test_a_block_without_a_partner_is_listed_among_other_reasons(name: str, tiny_vit: Build) -> None:
    rules: list[AttentionRule] = [Distill(), Guide(heads=9)]
    with pytest.raises(UserErrors) as caught:
        Plan(tiny_vit(1, name, depth=2), tiny_vit(2), rules, Pairing(layers="last"))
    unpaired, heads = caught.value.messages
    assert "block 0 of the student has no block of the teacher" in unpaired
    assert "Guide.heads=9" in heads


# --- the report before any training ---


def test_a_report_sorts_differences_by_what_they_do(tiny_vit: Build) -> None:
    teacher = tiny_vit(1, DINO, depth=6, img_size=12, num_heads=6, qk_norm=True)
    student = tiny_vit(2, in_chans=3)
    report = check_transfer(teacher, student, pairing=Pairing(heads="mean", registers="to class"))
    assert [difference.effect for difference in report.differences] == [
        *["prevents"] * len(report.problems),
        *["harms"] * len(report.warnings),
        *["mapped"] * len(report.notes),
    ]
    assert [difference.message for difference in report.differences] == [
        *report.problems,
        *report.warnings,
        *report.notes,
    ]
    assert (report.teacher.depth, report.student.depth) == (6, 3)
    assert len(report.problems) == 1
    assert "channels 1 but the student has 3" in report.problems[0]
    known, unstudied = report.warnings
    assert "lacks the teacher's LayerScale, registers, which is known to break attention transfer" in known
    assert "lacks the teacher's q/k norm, which may harm the transfer" in unstudied
    assert all("student_like" in message for message in (*report.problems, *report.warnings))
    for difference in (
        "3 blocks take the attention of 6, paired by 'relative'",
        "3 heads take the attention of 6, paired by 'mean'",
        "3×3 patches are resampled to 2×2",
        "prefix tokens class, 4 × register become class: the class token gets their attention",
        "images of 8×8 are resampled to 12×12 for the teacher",
        "each gets its own",
    ):
        assert any(difference in note for note in report.notes), difference
    assert len(report.notes) == 6
    with pytest.raises(UserError, match="channels"):
        report.raise_problems()


@pytest.mark.parametrize(
    ("teacher", "student", "effects"),
    [
        ({}, {"embed_dim": 48, "num_classes": 9}, []),
        ({}, {"num_heads": 2}, ["prevents"]),
        ({}, {"depth": 2}, ["mapped"]),
        ({"img_size": 12}, {}, ["mapped", "mapped"]),
        ({"img_size": 16, "patch_size": 8}, {}, ["mapped"]),
        ({"pretrained_cfg_overlay": {"std": (0.1,)}}, {}, ["mapped"]),
        ({"init_values": 1e-5}, {}, ["harms"]),
        ({}, {"init_values": 1e-5}, []),
        ({"qk_norm": True}, {}, ["harms"]),
        ({"pre_norm": True}, {}, ["harms"]),
        ({"reg_tokens": 1}, {}, ["harms", "mapped"]),
        ({"reg_tokens": 2}, {"reg_tokens": 1}, ["mapped"]),
        ({"name": "eva02_tiny_patch14_224"}, {"pretrained_cfg_overlay": {"mean": (0.48,)}}, ["harms", "mapped"]),
    ],
)
def test_each_difference_has_its_effect(teacher: Any, student: Any, effects: list[str], tiny_vit: Build) -> None:
    report = check_transfer(tiny_vit(1, **teacher), tiny_vit(2, **student))
    assert [difference.effect for difference in report.differences] == effects
    assert bool(report.problems) is ("prevents" in effects)


@pytest.mark.parametrize("heads", ["mean", "match"])
def test_heads_that_a_pairing_maps_are_a_note(heads: Any, tiny_vit: Build) -> None:
    report = check_transfer(tiny_vit(1, num_heads=6), tiny_vit(2), pairing=Pairing(heads=heads))
    assert report.problems == ()
    assert report.notes == (f"3 heads take the attention of 6, paired by '{heads}'",)
    report.raise_problems()


def test_a_bias_of_positions_that_the_student_lacks_is_known_to_matter(tiny_vit: Build) -> None:
    (warning,) = check_transfer(tiny_vit(1, "vit_relpos_small_patch16_224", init_values=None), tiny_vit(2)).warnings
    assert "relative position bias, which is known to break" in warning


@pytest.mark.parametrize("layers", [[0, 1], [0, 1, 9]])
def test_a_pairing_of_blocks_that_do_not_exist_is_a_problem(layers: list[int], tiny_vit: Build) -> None:
    assert check_transfer(tiny_vit(1), tiny_vit(2), pairing=Pairing(layers=layers)).problems


def test_blocks_paired_otherwise_than_one_by_one_are_a_note(tiny_vit: Build) -> None:
    assert check_transfer(tiny_vit(1), tiny_vit(2), pairing=Pairing(layers=[2, 1, 0])).notes
