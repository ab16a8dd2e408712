"""Rules from plain data: what is made, which class a name finds, and what is refused, all of it at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from attention_transfer.errors import UserError, UserErrors
from attention_transfer.transfer import BSS, Copy, Distill, Guide, LossRule, Rule
from attention_transfer.transfer.rule_data import find_rule, read_rules
from attention_transfer.vit import AttentionCall


@dataclass(frozen=True, kw_only=True)
class Nearby(LossRule):
    """A rule that nobody registered."""

    reach: int = 1

    def __post_init__(self) -> None:
        if self.reach < 0:
            raise ValueError("a reach of\n  less than nothing")

    def layer_loss(self, student: AttentionCall, teacher: AttentionCall) -> Tensor:
        return student.q.sum() - teacher.q.sum()


@dataclass(frozen=True, kw_only=True)
class Further(Nearby):
    """Derived from one that is a rule already."""


@dataclass(frozen=True, kw_only=True)
class _Hidden(Nearby):
    """Private, so it is no name for a configuration."""


class Abstract(LossRule):
    """Lacks its loss."""


class Bare(Rule):
    """Of no kind that anything would compute."""


class Stranger:
    """No rule at all."""


def test_a_rule_is_made_of_its_name_or_of_its_class_and_settings() -> None:
    made = read_rules(
        [
            "Copy",
            {"class_path": "Distill", "init_args": {"weight": "2", "layers": [0, -1], "target": "logits"}},
            {"class_path": "Guide", "init_args": None},
            {"class_path": "attention_transfer.BSS", "init_args": {"k": 2}},
            {"class_path": "attention_transfer.transfer.copying.Copy", "init_args": {"parts": "v"}},
            {"class_path": f"{__name__}.Nearby", "init_args": {"reach": 3}},
        ]
    )
    settings = Distill(weight=2.0, layers=[0, -1], target="logits")
    assert made == [Copy(), settings, Guide(), BSS(k=2), Copy(parts="v"), Nearby(reach=3)]
    assert read_rules([]) == []


@pytest.mark.parametrize("kind", [Nearby, Further])
def test_a_rule_that_is_loaded_is_found_without_being_registered(kind: type[Rule]) -> None:
    assert find_rule(kind.__name__) is kind
    assert find_rule(f"{__name__}.{kind.__name__}") is kind


@pytest.mark.parametrize(
    "path",
    [
        *("_Hidden", "Abstract", "Bare", "Stranger", f"{__name__}.Stranger", f"{__name__}.Missing", "os.path"),
        *("attention_transfer.transfer.guide.Copy", "attention_transfer.Nearby", "not.loaded.Nearby", ""),
    ],
)
def test_what_is_no_rule_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="there is no rule"):
        find_rule(path)


def test_the_nearest_rule_is_named_also_among_those_that_are_loaded_only() -> None:
    with pytest.raises(UserError, match="there is no rule 'Distil'; did you mean 'Distill'"):
        find_rule("Distil")
    with pytest.raises(UserError, match="there is no rule 'Neareby'; did you mean 'Nearby'"):
        find_rule("Neareby")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (3, "rules holds 3, which is none; name one with its settings"),
        ({"init_args": {}}, "rules holds {'init_args': {}}, which is none; name one with its settings"),
        ({"class_path": 1}, "rules holds {'class_path': 1}, which is none; name one with its settings"),
        (
            {"class_path": "Copy", "parts": "q"},
            "rules holds {'class_path': 'Copy', 'parts': 'q'}; give class_path, and the settings by name in init_args",
        ),
        (
            {"class_path": "Copy", "init_args": ["q"]},
            "rules holds {'class_path': 'Copy', 'init_args': ['q']}; give class_path, and the settings by name in "
            "init_args",
        ),
        (
            {"class_path": "Copy", "init_args": {"partz": "q"}},
            "there is no option 'partz' of Copy; did you mean 'parts'?",
        ),
        ({"class_path": "BSS", "init_args": {"k": "two"}}, "BSS.k is two; give a value of type int"),
        (
            {"class_path": "Distill", "init_args": {"weight": -1}},
            "Distill.weight is -1.0; give a finite number of at least 0",
        ),
        (
            {"class_path": "Nearby", "init_args": {"reach": -1}},
            "the rule Nearby can't be made (a reach of less than nothing)",
        ),
    ],
)
def test_what_makes_no_rule_is_refused_in_one_sentence(config: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_rules([config])
    assert str(caught.value) == message


def test_every_mistake_of_every_rule_is_listed() -> None:
    wrong = {"class_path": "BSS", "init_args": {"k": "two", "weigth": 1.0, "until": []}}
    with pytest.raises(UserErrors) as caught:
        read_rules([wrong, "Distill", "Coppy", {"class_path": "Guide", "init_args": {"on": "logit"}}])
    beginnings = ["BSS.k is two", "there is no option 'weigth' of BSS", "BSS.until", "there is no rule 'Coppy'"]
    assert len(caught.value.messages) == 5
    for message, beginning in zip(caught.value.messages, [*beginnings, "Guide.on is 'logit'"], strict=True):
        assert message.startswith(beginning)
