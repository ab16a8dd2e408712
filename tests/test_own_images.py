"""From a folder of images to an exported model and its predictions, as the README walks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw

from attention_transfer import cli, compare, inspect_data, load_run, predict, pretrain, train
from attention_transfer.data import ArrayImages, FileImages, Split, labelled_subset, load_data
from attention_transfer.errors import UserError
from attention_transfer.training import Recipe, RunFolder
from attention_transfer.training.inputs import subset_lines
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


def test_a_comparison_of_ones_own_images(
    folder: Path, network: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attention_transfer.training.inputs._SAID", set())
    recipe = Recipe(epochs=1, batch_size=9, validate_every=1)
    done = compare(
        "scratch,copy", seeds="0", shots="3", teacher=network, data=str(folder), recipe=recipe, out=str(tmp_path / "c")
    )
    assert [(row.preset, row.images) for row in done.rows] == [("scratch", 9), ("copy", 9)]
    pictures = {path.name for path in (done.path / "figures").iterdir()}
    assert {f"attention-{name}.png" for name in CLASSES} <= pictures
    for row in done.rows:
        assert "The test split is 20%" in (done.path / row.run / "log.txt").read_text()  # in each run's log


def test_the_labelled_images_are_listed_and_nested(folder: Path, network: str, tmp_path: Path) -> None:
    listed = []
    for fraction in (0.2, 0.5, 1.0):
        run = tmp_path / f"{fraction}"
        recipe = Recipe(epochs=1, batch_size=9, validate_every=1)
        summary = train(
            "scratch", teacher=network, data=str(folder), fraction=fraction, recipe=recipe, out=str(run)
        ).summary
        if fraction == 1:
            assert not (run / "labelled.txt").exists()  # nothing was chosen
            continue
        listed.append((run / "labelled.txt").read_text().splitlines())
        assert len(listed[-1]) == summary["train"]["images"]
        assert all(Path(path).is_file() for path in listed[-1])
    few, many = map(set, listed)
    assert few < many
    everything = load_data(str(folder)).train
    chosen = everything.take(labelled_subset(everything.labels, fraction=0.2)).images
    assert isinstance(chosen, FileImages)
    assert {str(path) for path in chosen.paths} == few


def test_odd_names_are_a_line_each_and_images_without_files_have_numbers() -> None:
    images = FileImages([b"a/\xff\n.png", "b/\u00e4\\.png", "c.png"])
    lines = subset_lines(Split(images, np.zeros(3, dtype=np.int64)), np.array([0, 1]))
    assert lines == "a/\\xff\\n.png\nb/\u00e4\\\\.png\n"
    grey = Split(ArrayImages(np.zeros((3, 4, 4), dtype=np.uint8)), np.zeros(3, dtype=np.int64))
    assert subset_lines(grey, np.array([0, 2])) == "0\n2\n"


def test_a_teacher_needs_no_class_folders(folder: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in folder.glob("*/*.jpg"):
        (flat / f"{file.parent.name}{file.name}").write_bytes(file.read_bytes())
    (flat / ".hidden.jpg").write_bytes(b"")
    splits = load_data(str(flat), labelled=False)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [27, 7, 8]
    assert [Path(path).name for path in splits.skipped] == ["discbroken.jpg"]
    recipe = Recipe(epochs=1, validate_every=1, label_smoothing=0.0)
    made = pretrain(data=str(flat), recipe=recipe, out=str(tmp_path / "teacher"))
    assert made.summary["train"]["images"] == 27
    with pytest.raises(UserError, match="holds images but no class folders"):
        load_data(str(flat))


def test_damaged_files_are_refused_where_that_is_asked_for(folder: Path) -> None:
    with pytest.raises(UserError, match=r"broken\.jpg"):
        inspect_data(str(folder), strict=True)


def test_they_are_refused_before_a_teacher_is_tuned(folder: Path, network: str, tmp_path: Path) -> None:
    words = ["train", "--preset", "tuned-distill", "--teacher", network, "--data", str(folder), "--strict"]
    with pytest.raises(UserError, match=r"broken\.jpg"):
        cli.run([*words, "--epochs", "1", "--out", str(tmp_path / "run")])
    assert list(tmp_path.iterdir()) == []
