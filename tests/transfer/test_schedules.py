"""Weights that change during training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attention_transfer.errors import UserError
from attention_transfer.transfer import BSS, L2SP, AttentionTransfer, Copy, Distill, FeatureKD, Guide, LogitKD

Build = Callable[..., Any]
RULES: list[Any] = [Distill, Guide, LogitKD, FeatureKD, L2SP, BSS]


@pytest.mark.parametrize("rule", RULES)
def test_a_constant_weight_stays(rule: Any) -> None:
    assert [rule(weight=2.0).weight_at(progress) for progress in (0.0, 0.3, 1.0)] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("rule", RULES)
def test_a_cosine_falls_to_nothing(rule: Any) -> None:
    falling = rule(weight=2.0, schedule="cosine")
    assert falling.weight_at(0.0) == 2.0
    assert falling.weight_at(0.25) == pytest.approx(1 + math.sqrt(0.5))
    assert falling.weight_at(0.5) == pytest.approx(1.0)
    assert falling.weight_at(0.75) == pytest.approx(1 - math.sqrt(0.5))
    assert falling.weight_at(1.0) == 0


@pytest.mark.parametrize("rule", RULES)
def test_a_cosine_may_end_early(rule: Any) -> None:
    falling = rule(weight=2.0, schedule="cosine", until=0.4)
    assert falling.weight_at(0.0) == 2.0
    assert falling.weight_at(0.1) == pytest.approx(1 + math.sqrt(0.5))
    assert falling.weight_at(0.2) == pytest.approx(1.0)
    assert [falling.weight_at(progress) for progress in (0.4, 0.41, 1.0)] == [0, 0, 0]


@pytest.mark.parametrize("rule", RULES)
def test_a_weight_that_is_switched_off_is_whole_before(rule: Any) -> None:
    off = rule(weight=2.0, schedule="off", until=0.4)
    assert [off.weight_at(progress) for progress in (0.0, 0.2, 0.399, 0.4, 0.7, 1.0)] == [2, 2, 2, 0, 0, 0]


@given(
    weight=st.just(0.0) | st.floats(1e-6, 1e6),
    schedule=st.sampled_from(["cosine", "off"]),
    until=st.floats(0, 1, exclude_min=True),
    progress=st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted),
)
def test_a_falling_weight_never_rises_never_turns_negative_and_is_nothing_afterwards(
    weight: float, schedule: Any, until: float, progress: list[float]
) -> None:
    rule = Distill(weight=weight, schedule=schedule, until=until)
    earlier, later = (rule.weight_at(share) for share in progress)
    rounding = 1e-12 * weight
    assert 0 <= later <= earlier + rounding
    assert earlier <= weight
    assert later == 0 or progress[1] < until
    assert rule.weight_at(until) == 0
    assert rule.weight_at(0.0) == weight


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight is -1.0; give a finite number of at least 0"),
        ({"weight": math.nan}, "weight is nan; give a finite number of at least 0"),
        ({"schedule": "ramp"}, "schedule is 'ramp'; choose one of: constant, cosine, off"),
        ({"schedule": "cosine", "until": 0.0}, "until is 0.0; give a share of the training above 0 and at most 1"),
        ({"schedule": "off", "until": 1.5}, "until is 1.5; give a share of the training above 0 and at most 1"),
        ({"schedule": "off", "until": math.nan}, "until is nan; give a share of the training above 0 and at most 1"),
        ({"until": 0.5}, 'until has no effect on a constant weight; set schedule to "cosine" or "off"'),
    ],
)
def test_what_is_no_schedule_is_refused_in_one_sentence(options: dict[str, Any], message: str, rule: Any) -> None:
    with pytest.raises(UserError) as caught:
        rule(**options)
    assert str(caught.value) == f"{rule.__name__}.{message}"


def test_progress_changes_weights_and_total_but_no_loss(tiny_vit: Build, images: Tensor) -> None:
    rules = [
        Copy(layers=[0]),
        Distill(layers=[1], weight=3.0, schedule="cosine"),
        Guide(layers=[2], weight=0.5, schedule="off", until=0.5),
        LogitKD(weight=2.0),
        L2SP(weight=0.1, schedule="cosine", until=0.5),
    ]
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), rules)
    first = transfer(images)
    assert transfer.progress == 0
    expected = {
        0.0: {"distill": 3.0, "guide": 0.5, "logitkd": 2.0, "l2sp": 0.1},
        0.25: {"distill": 1.5 + 1.5 * math.sqrt(0.5), "guide": 0.5, "logitkd": 2.0, "l2sp": 0.05},
        0.5: {"distill": 1.5, "guide": 0.0, "logitkd": 2.0, "l2sp": 0.0},
        1.0: {"distill": 0.0, "guide": 0.0, "logitkd": 2.0, "l2sp": 0.0},
    }
    for progress, weights in expected.items():
        transfer.progress = progress
        output = transfer(images)
        assert output.weights == pytest.approx(weights)
        assert transfer.weights() == output.weights
        assert output.losses == first.losses
        total = 2.0 + sum(weights[name] * loss.item() for name, loss in first.losses.items())
        assert output.total(torch.tensor(2.0)).item() == pytest.approx(total, rel=1e-5)


def test_two_rules_of_one_kind_have_schedules_of_their_own(tiny_vit: Build) -> None:
    rules = [Distill(layers=[0], weight=2.0), Distill(layers=[1], weight=4.0, schedule="off", until=0.1)]
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), rules)
    assert transfer.weights() == {"distill": 2.0, "distill_2": 4.0}
    transfer.progress = 0.2
    assert transfer.weights() == {"distill": 2.0, "distill_2": 0.0}


def test_after_its_end_a_rule_trains_nothing(tiny_vit: Build, images: Tensor) -> None:
    student = tiny_vit(2)
    transfer = AttentionTransfer(tiny_vit(1), student, [Distill(schedule="off", until=0.5)]).train()
    gradients = []
    for progress in (0.4, 0.6):
        transfer.progress = progress
        student.zero_grad()
        transfer(images).total(torch.zeros(())).backward()
        gradients.append(student.blocks[0].attn.qkv.weight.grad.abs().max().item())
    assert gradients[0] > 0
    assert gradients[1] == 0


def test_a_deep_copy_is_as_far_as_its_original(tiny_vit: Build) -> None:
    transfer = AttentionTransfer(tiny_vit(1), tiny_vit(2), [Guide(weight=1.0, schedule="cosine")])
    transfer.progress = 0.5
    twin = copy.deepcopy(transfer)
    assert twin.weights() == pytest.approx({"guide": 0.5})
    twin.progress = 1.0
    assert transfer.weights() == pytest.approx({"guide": 0.5})
