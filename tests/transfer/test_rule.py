from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_transfer.errors import UserError
from attention_transfer.transfer import (
    AttentionTransfer,
    CallPair,
    Copy,
    Distill,
    Guide,
    JointLossRule,
    LogitKD,
    LossRule,
)
from attention_transfer.vit import AttentionCall, describe

Build = Callable[..., Any]


@pytest.mark.parametrize("rule", [Distill, Guide])
@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_a_weight_that_is_no_weight_is_refused(rule: type[LossRule], weight: float) -> None:
    with pytest.raises(UserError, match=rf"{rule.__name__}\.weight is {weight}.* at least 0"):
        rule(weight=weight)


CHOICES: list[tuple[Any, str]] = [
    *((Copy, setting) for setting in ("parts", "average")),
    *((Distill, setting) for setting in ("target", "divergence", "average", "impl", "schedule")),
    *((Guide, setting) for setting in ("reduction", "query", "rows", "on", "schedule")),
    (LogitKD, "kind"),
]


@pytest.mark.parametrize(("rule", "setting"), CHOICES)
def test_a_word_that_is_no_choice_is_refused(rule: Any, setting: str) -> None:
    with pytest.raises(UserError, match=rf"^{rule.__name__}\.{setting} is 'nothing'; choose one of: "):
        rule(**{setting: "nothing"})


@pytest.mark.parametrize("rule", [Distill, Guide, Copy])
def test_layers_and_heads_outside_the_model_are_both_named_with_their_bounds(rule: Any, tiny_vit: Build) -> None:
    spec = describe(tiny_vit())
    problems = rule(layers=[3], heads=[-4]).problems(spec, spec)
    assert len(problems) == 2
    assert f"{rule.__name__}.layers [3] do not exist; choose from -3 to 2" in problems[0]
    assert f"{rule.__name__}.heads [-4] do not exist; choose from -3 to 2" in problems[1]
    assert rule(layers=[-3], heads=3).problems(spec, spec) == []


def test_a_rule_counts_its_layers_as_every_choice_does() -> None:
    assert Distill().chosen_layers(4) == (0, 1, 2, 3)
    assert Distill(layers=2).chosen_layers(4) == (2, 3)
    assert Distill(layers=[-1, 0]).chosen_layers(4) == (0, 3)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 3, 4, 4), (1, 1, 4, 4), (4, 4), (3, 4, 4)], ids=str)
def test_taken_heads_have_the_logits_they_had_among_all(shape: tuple[int, ...]) -> None:
    q, k = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    call = AttentionCall(q, k, k, torch.randn(shape), 0.4, 1)
    taken = call.heads((0, 2))
    torch.testing.assert_close(taken.logits(), call.logits()[:, [0, 2]])
    assert (taken.v.shape[1], taken.layer) == (2, 1)


@dataclass(frozen=True, kw_only=True)
class Temperature(LossRule):
    """A rule of one's own: the squared difference of the mean logits."""

    def layer_loss(self, student: AttentionCall, teacher: AttentionCall) -> Tensor:
        return (student.logits().mean() - teacher.logits().mean()).square()


def test_a_rule_of_ones_own_needs_nothing_but_its_loss(tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1), tiny_vit(2)
    output = AttentionTransfer(teacher, student, [Temperature(weight=2.0)])(images)
    assert output.losses["temperature"].item() > 0
    output.total(torch.zeros(())).backward()
    assert student.blocks[0].attn.qkv.weight.grad.abs().max() > 0


@dataclass(frozen=True, kw_only=True)
class MapsApart(LossRule):
    """The summed squares of the maps' difference, by rows."""

    def layer_loss(self, student: AttentionCall, teacher: AttentionCall) -> Tensor:
        return (student.maps() - teacher.maps()).square().sum(dim=-1).mean()


def test_a_rule_of_ones_own_reads_maps_that_are_mapped_to_the_students_tokens(tiny_vit: Build, images: Tensor) -> None:
    teacher, student = tiny_vit(1, img_size=12), tiny_vit(2)
    rules: list[Any] = [MapsApart(), Distill(divergence="mse")]
    losses = AttentionTransfer(teacher, student, rules)(images).losses
    assert MapsApart().reading == "maps"
    assert losses["mapsapart"].item() == pytest.approx(losses["distill"].item(), rel=1e-5)


@dataclass(frozen=True, kw_only=True)
class Spread(JointLossRule):
    """How far apart the layers' mean differences are."""

    def loss(self, calls: Sequence[CallPair]) -> Tensor:
        means = torch.stack([pair.student.logits().mean() - pair.teacher.logits().mean() for pair in calls])
        return means.max() - 2 * means.min()


def test_a_joint_rule_has_the_loss_of_one_layer_too() -> None:
    student, teacher = (AttentionCall.of(*torch.randn(2, 1, 2, 4, 3)) for _ in range(2))
    rule = Spread()
    assert rule.layer_loss(student, teacher) == rule.loss([CallPair(student, teacher)])


QK = frozenset("qk")
READS: list[tuple[Any, str, str | None, bool, frozenset[str]]] = [
    (Copy(), "maps", None, False, QK),
    (Copy(heads=[0]), "operands", None, False, QK),
    (Copy(parts="q"), "operands", None, False, frozenset("q")),
    (Copy(parts="k", heads=[0]), "operands", None, False, frozenset("k")),
    (Copy(parts="v"), "operands", None, True, frozenset("v")),
    (Distill(), "maps", None, False, frozenset()),
    (Distill(target="logits"), "logits", None, False, frozenset()),
    (Distill(target="k"), "operands", None, False, frozenset()),
    (Distill(target="v"), "operands", None, True, frozenset()),
    (Distill(target="output"), "operands", None, True, frozenset()),
    (Guide(), "logits", "class", False, frozenset()),
    (Guide(on="maps", query="mean"), "maps", "mean", False, frozenset()),
    (Guide(rows="all"), "logits", None, False, frozenset()),
    (MapsApart(), "maps", None, False, frozenset()),
]


@pytest.mark.parametrize(("rule", "reading", "row", "values", "replaces"), READS)
def test_what_a_rule_reads_and_replaces(
    rule: Any, reading: str, row: str | None, values: bool, replaces: frozenset[str]
) -> None:
    assert (rule.reading, rule.row, rule.reads_values, rule.replaces) == (reading, row, values, replaces)
    assert rule.needs_class_token is (row == "class")


@pytest.mark.parametrize("options", [{"heads": [0]}, {"impl": "flash"}])
def test_an_average_of_distilled_maps_is_of_all_heads_and_by_maps(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"Distill\.average is of all heads' maps, which are formed"):
        Distill(average="queries", **options)
    assert Distill(average="queries", impl="chunked").average == "queries"
