"""The model card of a run."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from torch import nn

from attention_transfer import PRESETS, describe
from attention_transfer.config.base import rule_as_data
from attention_transfer.training import Recipe
from attention_transfer.training.card import interval, model_card
from attention_transfer.training.run_files import TrainedConfig

SUMMARY: dict[str, Any] = {
    "preset": "copy",
    "train": {"images": 50, "steps": 200, "seconds": 3.0},
    "best_epoch": 80,
    "validation": {"images": 270, "accuracy": 0.9, "cross_entropy": 0.4, "calibration_error": 0.03, "loss": 0.7},
    "test": {"images": 450, "accuracy": 0.88, "cross_entropy": 0.5, "calibration_error": 0.04, "loss": 0.8},
}


def _config(preset: str = "copy", **options: Any) -> TrainedConfig:
    method = PRESETS[preset]
    config = TrainedConfig(
        preset=preset,
        teacher="timm/vit_small_patch16_224.dino",
        data="digits",
        shots=5,
        seed=3,
        init=method.init,
        init_parts=list(method.init_parts),
        trained=list(method.trained),
        rules=[rule_as_data(rule) for rule in method.rules],
        recipe={**asdict(Recipe()), "lr": 0.0123},
    )
    return replace(config, **options)


def _card(vit: nn.Module, config: TrainedConfig, **options: Any) -> str:
    return model_card(config, SUMMARY, describe(vit), ["ant", "bee", "cat", "dog", "eel"], **options)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_hub_reads_the_head_of_every_presets_card(vit: nn.Module, preset: str) -> None:
    card = ModelCard(_card(vit, _config(preset)))
    head: Any = card.data
    assert head.library_name == "timm"
    assert head.pipeline_tag == "image-classification"
    assert preset in head.tags
    assert head.base_model == "timm/vit_small_patch16_224.dino"
    (result,) = head.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.88, "digits")
    assert PRESETS[preset].summary in card.text
    assert all(type(rule).__name__ in card.text for rule in PRESETS[preset].rules)


def test_it_says_the_data_the_recipe_and_the_results(vit: nn.Module) -> None:
    text = _card(vit, _config("distill"))
    assert "50 labelled images, 5 of each class" in text
    assert "ant, bee, cat, dog, eel" in text
    assert "weight = 3.0" in text
    assert "lr 0.0123" in text
    assert "weight_decay" not in text  # it is the default
    assert "| test (450 images) | accuracy, % (95 % interval) | 88.0 (84.7 to 90.7) |" in text
    assert "| validation (270 images) | cross-entropy, nats | 0.400 |" in text
    assert "| test (450 images) | expected calibration error (15 bins), % | 4.0 |" in text


@pytest.mark.parametrize(("accuracy", "images"), [(0.88, 450), (1.0, 20), (0.0, 7)])
def test_the_interval_is_wilsons(accuracy: float, images: int) -> None:
    z = 1.959963984540054
    middle = (accuracy + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(accuracy * (1 - accuracy) / images + z**2 / (4 * images**2))
    assert interval(accuracy, images) == pytest.approx((middle - half, middle + half), abs=1e-9)


def test_a_copied_students_card_says_that_it_is_not_whole_by_itself(vit: nn.Module) -> None:
    assert "not a whole model without the run's `teacher/`" in _card(vit, _config("copy"))
    assert "that part of the teacher is in this file" in _card(vit, _config("copy"), form="onnx")
    assert "teacher's queries and keys" not in _card(vit, _config("distill"))


@pytest.mark.parametrize(
    ("form", "library", "loading"),
    [
        ("run", "timm", 'load_run("RUN")'),
        ("timm", "timm", "timm.create_model("),
        ("hf", "transformers", 'pipeline("image-classification"'),
        ("onnx", "onnx", "InferenceSession("),
    ],
)
def test_it_says_how_its_form_is_loaded(vit: nn.Module, form: Any, library: str, loading: str) -> None:
    text = _card(vit, _config("distill"), form=form, checks=["Logits differ by 1e-07."])
    head: Any = ModelCard(text).data
    assert head.library_name == library
    assert loading in text
    assert "- Logits differ by 1e-07." in text


def test_a_folder_of_this_machine_is_shown_by_its_name(vit: nn.Module) -> None:
    text = _card(vit, _config("copy", teacher="/home/someone/runs/mae", data="/home/someone/flowers"))
    assert "/home" not in text
    assert "`mae`" in text and "`flowers`" in text
    assert "base_model" not in text


@pytest.mark.parametrize("overlap", [None, {"test": 0, "validation": 0}, {"test": 1200, "validation": 0}])
def test_images_that_were_trained_on_too_are_told_beside_the_results(vit: nn.Module, overlap: Any) -> None:
    summary = {**SUMMARY, "overlap": overlap, "test": {**SUMMARY["test"], "images": 4500}}
    text = model_card(_config("distill"), summary, describe(vit), ["ant", "bee", "cat", "dog", "eel"])
    row = "| test (4,500 images) | of these, also trained on: the values above may be too good | 1,200 |"
    assert (row in text) == bool(overlap and overlap["test"])
    assert text.count("also trained on") == text.count(row)


def test_what_a_run_lacks_is_left_out(vit: nn.Module) -> None:
    config = _config("scratch", teacher=None, shots=None, fraction=0.15)
    text = model_card(config, {**SUMMARY, "test": None}, replace(describe(vit), classes=1000), ["x"] * 1000)
    assert "Teacher" not in text
    assert "15 % of each class" in text
    assert "test (450" not in text
    assert "and 950 more" in text
    assert "model-index" not in yaml.safe_load(text.split("---")[1])
