"""The verb `similarity`: what it reads, draws and refuses; its figures are those of the function on networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attention_transfer import UserError, cli, load_vit, similarity, train
from attention_transfer.data import digits
from attention_transfer.evaluation import similarity as measured
from attention_transfer.evaluation.subjects import spread
from attention_transfer.training import Recipe
from attention_transfer.vit import save_vit

Build = Callable[..., Any]


@pytest.fixture
def models(tiny_vit: Build, tmp_path: Path) -> tuple[str, str]:
    for seed, name in enumerate("ab"):
        save_vit(tiny_vit(seed), tmp_path / name)
    return str(tmp_path / "a"), str(tmp_path / "b")


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """A folder of images without classes."""
    (tmp_path / "photos").mkdir()
    draw = np.random.default_rng(0)
    for name in range(9):
        pixels = draw.integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")
    return str(tmp_path / "photos")


def test_figures_are_those_of_the_function(models: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    found = similarity(*models, "digits", limit=20, batch_size=10, rows=2)
    images = digits().test.images
    twenty = images.take(spread(len(images), 20))
    assert found == measured(load_vit(models[0]), load_vit(models[1]), twenty, batch=10, rows=2)
    shown = capsys.readouterr().err
    assert "a (A) and b (B): 20 images of digits, 2 rows each" in shown
    assert f"{found.js.optimal[0][0]:.3f}" in shown


def test_a_folder_of_images_gives_json_and_a_picture(models: tuple[str, str], photos: str, tmp_path: Path) -> None:
    out = tmp_path / "similarity"
    found = similarity(*models, photos, out=str(out), layers=2)
    assert (found.images, found.layers_a) == (9, (1, 2))
    written = json.loads((out / "similarity.json").read_text())
    assert (written.pop("a"), written.pop("b"), written.pop("data")) == (*models, photos)
    assert written == json.loads(json.dumps(asdict(found)))
    assert Image.open(out / "similarity.png").width > 500
    with pytest.raises(UserError, match=r"similarity\.json exists; choose another folder"):
        similarity(*models, photos, out=str(out))
    similarity(*models, photos, out=str(out), layers=1, overwrite=True)
    assert json.loads((out / "similarity.json").read_text())["layers_a"] == [2]
    similarity(*models, photos, out=str(tmp_path / "alone.json"))
    assert {"a", "b", "photos", "similarity", "alone.json"} == {entry.name for entry in tmp_path.iterdir()}


def test_a_run_brings_its_images_and_its_teacher(teacher: str, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, validate_every=1)
    run = train("copy", teacher=teacher, shots=2, recipe=recipe, out=str(tmp_path / "run"))
    found = similarity(str(run.path), teacher, limit=8)
    assert max(found.by_depth(found.js.optimal)[:1]) < 1e-6  # the first block's attention is the teacher's
    with pytest.raises(UserError, match="copies its teacher's attention at its own size; leave image_size out"):
        similarity(str(run.path), teacher, image_size=16)
    with pytest.raises(UserError, match=r"lies in .*, which is written"):
        similarity(str(run.path), teacher, out=str(run.path))


def test_networks_on_other_grids_are_refused(models: tuple[str, str], tiny_vit: Build, tmp_path: Path) -> None:
    save_vit(tiny_vit(img_size=12), tmp_path / "larger")
    with pytest.raises(UserError, match="the networks see 2×2 and 3×3 patches, so that their maps can't be compared"):
        similarity(models[0], str(tmp_path / "larger"), "digits")
    similarity(models[0], str(tmp_path / "larger"), "digits", image_size=12, limit=4)


def test_unlike_tokens_are_said(
    models: tuple[str, str], tiny_vit: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_vit(tiny_vit(class_token=False, global_pool="avg", num_heads=2), tmp_path / "bare")
    found = similarity(models[0], str(tmp_path / "bare"), "digits", limit=5)
    assert (found.tokens, found.js.same) == ("patches", None)
    assert "the special tokens differ" in capsys.readouterr().err
    with pytest.raises(UserError, match='has no class token; choose rows="all"'):
        similarity(models[0], str(tmp_path / "bare"), "digits", limit=5, rows="class")


def test_wrong_settings(models: tuple[str, str]) -> None:
    with pytest.raises(UserError) as error:
        similarity(*models, "digits", layers=4)
    assert str(error.value).splitlines() == [
        f"{name}: layers=4 asks for the last 4; choose from 1 to 3" for name in models
    ]
    with pytest.raises(UserError) as error:
        similarity(*models, "digits", rows=0, batch_size=0, limit=0)
    assert len(str(error.value).splitlines()) == 3
    with pytest.raises(UserError, match="the models are no runs"):
        similarity(*models)
    with pytest.raises(UserError, match="there is no data set 'digit'"):
        similarity(*models, "digit")


def test_on_the_command_line(models: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["similarity", *models, "digits", "--rows", "class", "--layers", "all", "--limit", "4"])
    assert "4 images of digits, 1 rows each" in capsys.readouterr().err
