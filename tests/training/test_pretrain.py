"""The verb `pretrain`."""

from __future__ import annotations

from pathlib import Path

import pytest

from attention_transfer import UserError, capture, load_vit, pretrain
from attention_transfer.data import digits, eval_transform
from attention_transfer.training import Recipe
from attention_transfer.vit import describe


def test_a_teacher_is_made_and_can_be_loaded(tmp_path: Path) -> None:
    recipe = Recipe(epochs=3, batch_size=64, lr=2e-3, label_smoothing=0.0, validate_every=1)
    run = pretrain(recipe=recipe, out=str(tmp_path / "teacher"))
    assert run.summary["train"]["images"] == len(digits().train.labels)
    assert 0 < run.summary["validation"]["loss"] < run.summary["validation"]["zero"]
    teacher = load_vit(str(run.path))
    images = digits().test.with_transform(eval_transform(describe(teacher))).materialised().tensors[0][:2]
    with capture(teacher) as calls:
        teacher(images)
    assert len(calls) == describe(teacher).depth


def test_every_mistake_is_listed_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe.lr is(.|\n)*mask_ratio is 1.0"):
        pretrain(mask_ratio=1.0, recipe=Recipe(lr=-1.0), out=str(tmp_path / "teacher"))
    with pytest.raises(UserError, match=r"seed is -1; .*\nimage_size is 0; "):
        pretrain(seed=-1, image_size=0, out=str(tmp_path / "teacher"))
    assert list(tmp_path.iterdir()) == []
