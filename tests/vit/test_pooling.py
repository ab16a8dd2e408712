from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from attention_transfer.errors import UserError
from attention_transfer.vit import load_vit, save_vit, set_pool, student_from, student_like

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def vit(pool: str, name: str = "vit_tiny_patch16_224", **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, global_pool=pool, **{**SMALL, **changes}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize(("before", "after"), [("token", "avg"), ("avg", "token")])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_a_model_pools_as_one_that_was_made_so(before: str, after: Any, name: str, tmp_path: Path) -> None:
    """The same weights in timm's own model of the other pooling give the same logits; so does the saved model."""
    model, made = vit(before, name), vit(after, name)
    names = {"norm.": "fc_norm.", "fc_norm.": "norm."}
    state = {
        next((new + key.removeprefix(old) for old, new in names.items() if key.startswith(old)), key): value
        for key, value in model.state_dict().items()
    }
    made.load_state_dict(state)
    set_pool(model, after)
    assert model.state_dict().keys() == made.state_dict().keys()
    assert torch.equal(model(IMAGES), made(IMAGES))
    save_vit(model, tmp_path / "model")
    assert torch.equal(load_vit(str(tmp_path / "model"))(IMAGES), made(IMAGES))


def test_it_changes_nothing_where_the_pooling_is_that_already() -> None:
    model = vit("avg")
    before = model(IMAGES)
    set_pool(model, "avg")
    assert torch.equal(model(IMAGES), before)


def test_students_get_the_pooling_and_the_teacher_keeps_its_own() -> None:
    teacher = vit("token")
    for student in (student_like(teacher, num_classes=3, pool="avg"), student_from(teacher, num_classes=3, pool="avg")):
        assert student.global_pool == "avg"
        assert isinstance(student.norm, nn.Identity)
        assert student.get_parameter("head.weight").abs().max() < 0.2  # nn.Linear's own would reach 0.25
    assert teacher.global_pool == "token"


@pytest.mark.parametrize(
    ("model", "pool", "message"),
    [
        (lambda: vit("avg", class_token=False), "token", "no class token; set it to 'avg'"),
        (lambda: vit("map"), "avg", "gathers its tokens by 'map'; leave pool out"),
        (lambda: vit("token", "deit_tiny_distilled_patch16_224"), "avg", "in its own way; leave pool out"),
        (lambda: vit("avg", fc_norm=False, final_norm=False), "token", "0 final norms, not one"),
    ],
)
def test_other_models_are_refused(model: Any, pool: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        set_pool(model(), pool)
