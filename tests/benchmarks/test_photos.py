"""The cut-outs of benchmarks/photos: exact masks and boxes, the same for the same seed, nothing shared by splits."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image

from attention_transfer import segment
from attention_transfer.evaluation import segment as segment_network
from attention_transfer.vit import save_vit
from benchmarks.photos import fashion

CUTOUTS = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "photos" / "cutouts.py"))
SIZE = 28


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten cut-outs a class, discs each of a red of its own; backgrounds have no red."""
    root, draw = tmp_path_factory.mktemp("prepared"), np.random.default_rng(0)
    disc = np.hypot(*np.mgrid[-10:11, -10:11]) <= 9
    for number, folder in enumerate(CUTOUTS["CLASSES"].values()):
        (root / "cutouts" / folder).mkdir(parents=True)
        for i in range(10):
            pixels = np.zeros((21, 21, 4), dtype=np.uint8)
            pixels[disc] = (100 + 10 * number + i, 0, 0, 255)
            Image.fromarray(pixels).save(root / "cutouts" / folder / f"{i}.png")
        Image.new("RGB", (9, 9)).save(root / "cutouts" / folder / "without-alpha.png")
    (root / "backgrounds").mkdir()
    names = {*CUTOUTS["SHIFT"], *(name for split in CUTOUTS["BACKGROUNDS"].values() for name in split)}
    for i, name in enumerate(sorted(names)):
        pixels = draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        pixels[..., 0], pixels[..., 2] = 0, 20 * i
        Image.fromarray(pixels).save(root / "backgrounds" / name, quality=100, subsampling=0)
    return root


@pytest.fixture(scope="module")
def made(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    for variant in CUTOUTS["VARIANTS"]:
        CUTOUTS["write"](variant, prepared, out, seed=0, size=SIZE)
    return out


def pictures(folder: Path, split: str) -> dict[str, Any]:
    return {str(path.relative_to(folder)): np.asarray(Image.open(path)) for path in (folder / split).rglob("*.png")}


def test_masks_and_boxes_are_exact(made: Path) -> None:
    rows = {row["path"]: row for row in csv.DictReader((made / "boxes-plain.csv").open())}
    count = 0
    for split, number in CUTOUTS["SIZES"].items():
        masks = pictures(made / "masks" / "plain", split)
        for name, pixels in pictures(made / "plain", split).items():
            green = pixels[..., 1]  # 0 of a disc, 128 of the ground; in between where the edge is soft
            assert (masks[name][green < 62] == 255).all() and (masks[name][green > 66] == 0).all()
            rows_, columns = np.nonzero(masks[name])
            box = [columns.min(), rows_.min(), columns.max() + 1, rows_.max() + 1]
            assert box == [int(rows[name][side]) for side in ("left", "top", "right", "bottom")]
            count += 1
        assert len(masks) == number * len(CUTOUTS["CLASSES"])
    assert count == len(rows)


def test_no_cutout_is_in_two_splits(prepared: Path) -> None:
    for folder in CUTOUTS["CLASSES"].values():
        split = CUTOUTS["parts"](sorted((prepared / "cutouts" / folder).glob("*.png")), 0)
        assert sorted(path.stem for paths in split.values() for path in paths) == [str(i) for i in range(10)]
        assert [len(paths) for paths in split.values()] == [5, 2, 3]


def test_the_same_seed_gives_the_same_pictures_and_another_others(made: Path, prepared: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        CUTOUTS["write"]("photographs", prepared, tmp_path / str(seed), seed=seed, size=SIZE)
    first = pictures(made / "photographs", "test")
    same, other = (pictures(tmp_path / str(seed) / "photographs", "test") for seed in (0, 1))
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_in_the_shift_the_background_goes_with_the_class_in_training_and_not_in_testing(made: Path) -> None:
    def backgrounds(split: str) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for name, pixels in pictures(made / "shift", split).items():
            corner = pixels[pixels[..., 0] == 0]
            found.setdefault(Path(name).parts[1], set()).add(round(float(np.median(corner[:, 2])) / 20))
        return found

    train, validation, test = map(backgrounds, ("train", "val", "test"))
    assert train == validation
    assert all(len(seen) == 1 for seen in train.values())
    assert all(not train[label] & test[label] for label in train)
    assert all(len(seen) > 1 for seen in test.values())


def test_attention_and_probe_are_measured_on_the_cut_outs(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "photos" / "measure.py"))
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=7, embed_dim=24, depth=1, num_heads=2, num_classes=0
    )
    save_vit(vit.eval(), tmp_path / "network")
    words = ["measure", str(tmp_path / "network"), str(made), "--variant", "plain", "--image-size", str(SIZE)]
    monkeypatch.setattr("sys.argv", [*words, "--shots", "2"])
    measure["main"]()
    looked, probed = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    assert [line.split(",")[0] for line in looked] == ["network", "as it is", "random"]
    area = np.mean([pixels > 0 for pixels in pictures(made / "masks" / "plain", "test").values()])
    share = float(looked[1].split(",")[2])
    assert share == pytest.approx(area, abs=0.1)  # a network that knows nothing looks everywhere alike
    assert len(probed) == 1 + 3 * 4
    red = [float(line.split(",")[3]) for line in probed[1:]]
    assert max(red) > 1 / 7  # classes differ by colour


def test_each_deviation_is_measured_on_the_cut_outs(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deviations = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "photos" / "deviations.py"))
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=7, embed_dim=24, depth=1, num_heads=2, num_classes=0
    )
    save_vit(vit.eval(), tmp_path / "network")
    images, masks = str(made / "plain"), str(made / "masks" / "plain")
    words = ["deviations", str(tmp_path / "network"), images, masks, "--sizes", f"{SIZE},42", "--limit", "6"]
    monkeypatch.setattr("sys.argv", words)
    deviations["main"]()
    table = {row["what"]: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    assert list(table) == [
        "the protocol (28 pixels; 60 %)",
        "90 % of the mass",
        "42 pixels",
        "merged heads, blurred",
        "a border of void, left out",
        "a border of void, counted as background",
    ]
    protocol, _, _, blurred, without, within = table.values()
    (found,) = segment([str(tmp_path / "network")], data=images, masks=masks, limit=6, training=0, void="none")
    assert float(protocol["dino"]) == pytest.approx(100 * found.results[0].scores["dino"].value, abs=0.06)
    assert blurred["dino"] == "" and float(blurred["merged-mean"]) > 0
    assert float(without["dino"]) > float(within["dino"])  # fewer pixels to be wrong about


def test_a_blur_of_nothing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    deviations = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "photos" / "deviations.py"))
    monkeypatch.setitem(deviations["rows"].__globals__, "BLUR", 1e-6)  # those of blurred are of its decorator
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=7, embed_dim=24, depth=1, num_heads=2, num_classes=0
    ).eval()
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(8)]
    masks = np.zeros((8, SIZE, SIZE), dtype=np.uint8)
    masks[:, 5:20, 3:18] = 255
    (found,) = segment_network(vit, images, masks, void=None)
    assert list(deviations["blurred"](vit, images, masks)) == pytest.approx(found.per_image["merged-mean"])


def test_the_border_of_void_is_around_the_object_and_not_along_the_picture() -> None:
    deviations = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "photos" / "deviations.py"))
    mask = np.zeros((5, 6), dtype=np.uint8)
    mask[:, :3] = 255
    (bordered,) = deviations["WithBorders"](mask[None])
    assert bordered.tolist() == [[1, 1, 255, 255, 0, 0]] * 5


def test_a_teacher_of_fashion_mnist_sees_no_picture_that_chooses_or_tests(tmp_path: Path) -> None:
    count = 10
    official = SimpleNamespace(
        targets=[number % 2 for number in range(2 * count)],
        classes=["shirt", "T-shirt/top"],
        data=np.arange(2 * count, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8),
    )
    fashion.write(official, tmp_path / "train", [0, 1, 9])
    found: dict[str, list[str]] = {"shirt": [], "T-shirt or top": []}
    for path in sorted(tmp_path.rglob("*.png")):
        found[path.parent.name].append(path.stem)
        assert int(np.asarray(Image.open(path)).max()) == int(path.stem)
    assert found == {"shirt": ["00000", "00002", "00018"], "T-shirt or top": ["00001", "00003", "00019"]}
    seen, chosen, learnt = (
        {*fashion.FOLDERS[name][1]} for name in ("unlabelled/train", "labelled/val", "labelled/train")
    )
    assert not chosen & (seen | learnt)
    assert len(seen) == 5800
    assert learnt < seen
    assert all(fashion.FOLDERS[name][0] == (not name.endswith("test")) for name in fashion.FOLDERS)
