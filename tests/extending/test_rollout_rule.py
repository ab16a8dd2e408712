"""A rule of another package, in one file: it reads the attention of all layers at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

ROLLOUT = '''
"""Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928) of teacher and student, compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attention_transfer import JointLossRule
from attention_transfer.transfer import CallPair


@dataclass(frozen=True, kw_only=True)
class Rollout(JointLossRule):
    """Mean squared distance of the class token's rolled-out attention."""

    needs_class_token = True

    def loss(self, calls: Sequence[CallPair]) -> Tensor:
        student = rollout([pair.student.maps() for pair in calls])
        teacher = rollout([pair.teacher.maps() for pair in calls])
        return (student[:, 0] - teacher[:, 0]).square().mean()


def rollout(maps: list[Tensor]) -> Tensor:
    total = torch.eye(maps[0].shape[-1])
    for layer in maps:
        total = (0.5 * layer.mean(dim=1) + 0.5 * torch.eye(layer.shape[-1])) @ total
    return total
'''

SETUP = """
import torch
from attention_transfer import AttentionTransfer, UserError, capture, load_vit, student_like
from attention_transfer.transfer import rules
from rollout import Rollout, rollout

torch.manual_seed(0)
teacher = load_vit("builtin/vit_digits", pretrained=False)
student = student_like(teacher, num_classes=10)
images = torch.randn(2, 1, 8, 8)
"""


@pytest.fixture
def run(installed: Callable[..., Any]) -> Any:
    return installed("rollout", ROLLOUT, rules="Rollout = rollout:Rollout")


def test_it_is_found_by_its_name(run: Any) -> None:
    code = "from attention_transfer.transfer import rules\nprint(rules.names()[-1], rules.find('Rollout').__module__)"
    assert run(code).split() == ["Rollout", "rollout"]


def test_it_gets_the_calls_of_all_layers_and_trains_the_student(run: Any) -> None:
    code = f"""{SETUP}
def rolled(model):
    with capture(model) as calls:
        model(images)
    return rollout([call.maps() for call in calls])[:, 0]

expected = (rolled(student) - rolled(teacher)).square().mean()
transfer = AttentionTransfer(teacher, student, [Rollout(weight=2.0)]).train()
output = transfer(images)
assert set(output.losses) == {{"rollout"}}
torch.testing.assert_close(output.losses["rollout"], expected)
output.total(torch.zeros(())).backward()
print(min(float(block.attn.qkv.weight.grad.abs().max()) for block in student.blocks[:-1]) > 0)
"""
    assert run(code).split() == ["True"]


def test_it_binds_the_layers_that_it_is_given_also_of_an_unequal_pair(run: Any) -> None:
    code = f"""{SETUP}
deep = load_vit("timm/vit_tiny_patch16_224", pretrained=False, image_size=16, patch_size=8, num_classes=0)
small = student_like(deep, num_classes=3)
small.blocks = small.blocks[:6]
output = AttentionTransfer(deep, small, [Rollout(layers="first 2")])(torch.randn(2, 3, 16, 16))
print(float(output.losses["rollout"]) > 0)
"""
    assert run(code).split() == ["True"]


def test_what_it_declares_is_checked_before_any_training(run: Any) -> None:
    code = f"""{SETUP}
bare = load_vit("timm/vit_base_patch16_siglip_224", pretrained=False, image_size=16, patch_size=8, num_classes=0)
try:
    AttentionTransfer(bare, student_like(bare, num_classes=3), [Rollout()])
except UserError as error:
    print(error)
"""
    assert "Rollout needs a class token, which teacher" in run(code)
