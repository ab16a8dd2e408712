"""What a recipe leaves open follows from what is trained; what it gives is kept."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from attention_transfer import Distill, Guide, UserError, describe, train
from attention_transfer.cli import run as command
from attention_transfer.config.choices import AUTO
from attention_transfer.training import Recipe, RunFolder
from attention_transfer.training.defaults import Facts, Start, explained, resolve, start_of
from attention_transfer.training.digits_recipe import DIGITS
from attention_transfer.transfer import PRESETS
from attention_transfer.vit import ViTSpec

VIT_S = Facts(start="pretrained", width=384, depth=12, images=35)
STARTS: tuple[Start, ...] = ("random", "pretrained", "head", "mae")


@pytest.fixture
def spec(vit: nn.Module) -> ViTSpec:
    return describe(vit)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes of ten images each."""
    draw = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 128)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(10):
            pixels = draw.integers(low, low + 128, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def steps(recipe: Any, images: int) -> int:
    return int(recipe.epochs * math.ceil(images / recipe.batch_size))


@pytest.mark.parametrize("start", STARTS)
@given(images=st.integers(1, 2_000_000), depth=st.integers(1, 48), width=st.sampled_from([32, 192, 384, 1024, 4096]))
def test_every_network_and_every_number_of_images_has_a_sound_recipe(
    start: Start, images: int, depth: int, width: int
) -> None:
    facts = Facts(start=start, width=width, depth=depth, images=images)
    found = resolve(Recipe(augment="none"), facts, None)  # type: ignore[arg-type]
    assert found.problems() == []
    assert AUTO not in asdict(found).values()
    assert found.batch_size % 8 == 0
    assert found.epochs % found.validate_every == 0
    assert steps(found, images) >= (500 if start == "random" else 200)


def test_the_most_epochs_are_cut_into_validations_at_once() -> None:
    found = resolve(Recipe(augment="none", epochs=1_000_000), VIT_S, None)  # type: ignore[arg-type]
    assert found.problems() == []
    assert found.validate_every == 100_000


def test_what_is_given_is_kept_and_the_rest_follows_it(spec: ViTSpec) -> None:
    asked = Recipe(lr=0.123, batch_size=5, ema_decay=None, weight_decay=0.0)
    found = resolve(asked, VIT_S, spec)
    assert (found.lr, found.batch_size, found.ema_decay, found.weight_decay) == (0.123, 5, None, 0.0)
    assert steps(found, 35) >= 200
    text = explained(asked, found, VIT_S)
    assert "epochs 30" in text and "layer decay 0.75" in text and "35 labelled images" in text
    assert ", lr" not in text and "batch size" not in text
    assert explained(Recipe(**asdict(found)), found, VIT_S) == ""


def test_pretrained_weights_get_a_rate_that_does_not_destroy_them(spec: ViTSpec) -> None:
    """4e-3 destroyed a real ViT-S, and 1e-4 was good."""
    rate = resolve(Recipe(), VIT_S, spec).lr
    assert 5e-5 <= rate <= 2e-4
    wide = resolve(Recipe(), replace(VIT_S, width=1024, depth=24), spec)
    assert wide.lr < rate / 2
    assert wide.layer_decay**24 == pytest.approx(0.75**12, rel=0.02)  # the same from end to end
    assert resolve(Recipe(), replace(VIT_S, start="random"), spec).lr > 3 * rate


def test_few_images_get_steps_and_many_get_epochs_and_wide_batches(spec: ViTSpec) -> None:
    few, many = (resolve(Recipe(), replace(VIT_S, images=n), spec) for n in (20, 1_000_000))
    assert (steps(few, 20), few.batch_size) == (200, 24)
    assert (many.epochs, many.batch_size) == (30, 512)
    assert many.ema_decay is not None and few.ema_decay is not None and many.ema_decay > few.ema_decay
    assert (few.drop_path, many.drop_path) == (0.0, 0.1)


@pytest.mark.parametrize(
    ("init", "parts", "trained", "start"),
    [
        ("random", [], [], "random"),
        ("teacher", [], [], "pretrained"),
        ("teacher", [], ["head"], "head"),
        ("teacher", [], ["qkv", "head"], "pretrained"),
        ("teacher", ["attention"], [], "random"),
        ("timm/vit_tiny_patch16_224", ["all"], [], "pretrained"),
    ],
)
def test_the_start_is_told_from_what_is_taken_and_trained(init: str, parts: Any, trained: Any, start: Start) -> None:
    assert start_of(init, parts, trained) == start


def test_presets_carry_no_rates_and_the_digits_have_their_own() -> None:
    assert not [name for name, method in PRESETS.items() if {"lr", "epochs", "batch_size"} & {*method.recipe}]
    assert {*DIGITS} == {*PRESETS}
    assert DIGITS["gta"].rules([Guide()]) == [Guide(weight=0.12)]
    assert DIGITS["finetune"].rules([]) == []


def test_small_networks_on_digits_are_trained_by_the_digits_recipe(teacher: str, tmp_path: Path) -> None:
    run = train("gta", teacher=teacher, shots=1, epochs=1, out=str(tmp_path / "run"))
    config = RunFolder(run.path).trained_config()
    assert (config.recipe["lr"], config.recipe["batch_size"], config.recipe["epochs"]) == (8e-3, 50, 1)
    assert config.rules[0]["init_args"]["weight"] == 0.12
    own = train("gta", teacher=teacher, shots=1, epochs=1, rules=[Distill()], out=str(tmp_path / "own"))
    assert RunFolder(own.path).trained_config().rules[0]["init_args"]["weight"] == Distill().weight


def test_the_resolved_values_are_printed_and_repeat_the_run(
    teacher: str, tmp_path: Path, photographs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["train", "--preset", "gta", "--data", str(photographs), "--teacher", teacher, "--recipe.epochs", "2"]
    with caplog.at_level(logging.INFO, logger="attention_transfer"):
        command([*words, "--recipe.label-smoothing", "0.2", "--out", str(tmp_path / "first")])
    first = RunFolder(tmp_path / "first")
    recipe = first.config().recipe
    assert {"auto"} & {*map(str, recipe.values())} <= {str(recipe["precision"])}
    assert (recipe["epochs"], recipe["label_smoothing"]) == (2, 0.2)
    assert f"lr {recipe['lr']:.3g}" in caplog.text and "pre-trained weights" in caplog.text
    command(["train", "--config", str(first.path / "config.yaml"), "--out", str(tmp_path / "second")])
    second = RunFolder(tmp_path / "second")
    assert second.config().recipe == recipe
    assert second.summary()["test"] == first.summary()["test"]


def test_a_base_batch_without_a_rate_is_refused(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give lr, too"):
        train("gta", teacher=teacher, recipe=Recipe(lr_base_size=256), out=str(tmp_path / "run"))
