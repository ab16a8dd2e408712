"""The recipe refuses what can't be trained with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attention_transfer.training import Recipe
from attention_transfer.transfer import PRESETS


def test_the_defaults_have_no_problem() -> None:
    assert Recipe().problems() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": 99_999_999_999},
        {"batch_size": 0},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"min_lr": 1.5},
        {"warmup": 1.5},
        {"beta2": 1.0},
        {"layer_decay": 0.0},
        {"label_smoothing": 1.0},
        {"ema_decay": 1.0},
        {"drop_path": -0.1},
        {"validate_every": 0},
    ],
)
def test_a_value_out_of_bounds_is_named(wrong: dict[str, float]) -> None:
    (name,) = wrong
    (problem,) = replace(Recipe(), **wrong).problems()  # type: ignore[arg-type]
    assert problem.startswith(f"recipe.{name} is ")


def test_all_problems_are_listed_at_once() -> None:
    assert len(Recipe(epochs=0, lr=-1.0, warmup=2.0).problems()) == 3


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_recipe_is_valid(name: str) -> None:
    assert Recipe(**PRESETS[name].recipe).problems() == []  # type: ignore[arg-type]
