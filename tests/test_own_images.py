"""From a folder of images to an exported model and its predictions, as the README walks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw

from attention_transfer import cli, compare, inspect_data, load_run, predict
from attention_transfer.errors import UserError
from attention_transfer.training import Recipe, RunFolder
from attention_transfer.vit import save_vit

CLASSES = ("bar", "disc", "frame")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three kinds of shapes on noise, in JPEGs of several sizes and modes; one of them is cut short."""
    place = tmp_path_factory.mktemp("data") / "shapes"
    generator = np.random.default_rng(0)
    for kind in CLASSES:
        (place / kind).mkdir(parents=True)
        for number in range(14):
            width, height = generator.integers(70, 120, 2)
            image = Image.fromarray(generator.integers(0, 90, (height, width, 3), dtype=np.uint8))
            box = (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
            draw = ImageDraw.Draw(image)
            if kind == "disc":
                draw.ellipse(box, fill=(250, 200, 80))
            elif kind == "frame":
                draw.rectangle(box, outline=(120, 220, 250), width=6)
            else:
                draw.line(box, fill=(240, 240, 240), width=9)
            image.convert("L" if number == 3 else "RGB").save(place / kind / f"{number}.jpg")
    whole = (place / "disc" / "0.jpg").read_bytes()
    (place / "disc" / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    return place


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pre-trained ViT stands here: 64 pixels, 16 patches, two blocks."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("network") / "vit"
    save_vit(timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=24, depth=2, num_heads=3), place)
    return str(place)


@pytest.mark.parametrize("preset", ["gta", "copy"])
def test_the_walk(preset: str, folder: Path, network: str, tmp_path: Path) -> None:
    run, model = tmp_path / "run", tmp_path / "model"
    cli.run(["data", str(folder), "--out", str(tmp_path / "report.json")])
    words = ["train", "--preset", preset, "--teacher", network, "--data", str(folder), "--epochs", "2"]
    cli.run([*words, "--recipe.batch-size", "9", "--recipe.validate-every", "1", "--out", str(run)])
    cli.run(["export", str(run), "--to", "onnx" if preset == "copy" else "timm", "--out", str(model)])
    shown = [str(folder / "disc"), str(folder / "bar" / "3.jpg")]
    cli.run(["predict", str(run), *shown, "--probabilities", "all", "--out", str(tmp_path / "predictions.json")])

    report = json.loads((tmp_path / "report.json").read_text())
    assert [Path(path).name for path in report["damaged"]] == ["broken.jpg"]
    summary = RunFolder(run).summary()
    assert summary["train"]["images"] + summary["validation"]["images"] + summary["test"]["images"] == 42
    assert load_run(run).classes == CLASSES
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert len(predictions) == 14 + 1
    for row in predictions:
        assert sorted(row["classes"]) == sorted(CLASSES)
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-4)
    assert "shapes" in (run / "model" / "README.md").read_text()
    if preset == "gta":
        loaded = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
        images = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(loaded(images), load_run(run).network(images), atol=1e-5, rtol=1e-5)
        assert [p.classes[0] for p in predict(str(model), shown)] == [row["classes"][0] for row in predictions]


def test_a_comparison_of_ones_own_images(folder: Path, network: str, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, batch_size=9, validate_every=1)
    done = compare(
        "scratch,copy", seeds="0", shots="3", teacher=network, data=str(folder), recipe=recipe, out=str(tmp_path / "c")
    )
    assert [(row.preset, row.images) for row in done.rows] == [("scratch", 9), ("copy", 9)]
    pictures = {path.name for path in (done.path / "figures").iterdir()}
    assert {f"attention-{name}.png" for name in CLASSES} <= pictures


def test_damaged_files_are_refused_where_that_is_asked_for(folder: Path) -> None:
    with pytest.raises(UserError, match=r"broken\.jpg"):
        inspect_data(str(folder), strict=True)
