"""The verb `segment`: what it reads, what it refuses, and that its scores are those of the function on tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from attention_transfer import UserError, cli, load_vit, segment
from attention_transfer.data import DATA, ArrayImages, Split, Splits
from attention_transfer.evaluation import paired_difference
from attention_transfer.evaluation import segment as segment_network
from attention_transfer.evaluation.segment_verb import segmentation_differences
from attention_transfer.vit import save_vit

Build = Callable[..., Any]
Folders = tuple[str, str]


@pytest.fixture
def model(tiny_vit: Build, tmp_path: Path) -> str:
    save_vit(tiny_vit(), tmp_path / "model")
    return str(tmp_path / "model")


def drawn(index: int, height: int = 24, width: int = 32) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image, and a mask with an object."""
    draw = np.random.default_rng(index)
    mask = np.zeros((height, width), dtype=np.uint8)
    top, left = (int(n) for n in draw.integers(0, 12, 2))
    mask[top : top + 9, left : left + 11] = 1
    return draw.integers(0, 256, (height, width, 3), dtype=np.uint8), mask


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Five images, one of them in a folder of its own, and their masks."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    for index, name in enumerate(("a", "b", "c", "d", "deep/e")):
        image, mask = drawn(index)
        for folder, pixels, suffix in ((images, image, "png"), (masks, mask, "png" if index else "bmp")):
            path = folder / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return str(images), str(masks)


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> Splits:
    """Twelve images with masks in each split, as an embedded data set."""

    def part(start: int) -> Split:
        pairs = [drawn(start + i) for i in range(12)]
        images, masks = (np.stack([pair[i] for pair in pairs]) for i in (0, 1))
        return Split(ArrayImages(images), np.zeros(12, dtype=np.int64), masks > 0)

    made = Splits("scenes", ("one",), part(0), part(20), part(40))
    monkeypatch.setitem(DATA, "scenes", lambda: made)
    return made


def write_mask(folders: Folders, name: str, pixels: NDArray[np.uint8]) -> None:
    Image.fromarray(pixels).save(Path(folders[1]) / f"{name}.png")


def in_splits(folders: Folders) -> None:
    """Move two of the images into `train`, and the others into `test`."""
    for folder in map(Path, folders):
        for file in [path for path in folder.rglob("*") if path.is_file()]:
            place = folder / ("train" if file.stem in "ab" else "test") / file.name
            place.parent.mkdir(exist_ok=True)
            file.rename(place)


def test_folders_of_splits_are_told_apart(model: str, folders: Folders) -> None:
    in_splits(folders)
    (tested,) = segment([model], data=folders[0], masks=folders[1])
    (trained,) = segment([model], data=folders[0], masks=folders[1], split="train")
    assert (tested.results[0].images, trained.results[0].images) == (3, 2)
    assert tested.results[0].head is not None  # chosen on the training images
    assert trained.results[0].head is None
    with pytest.raises(UserError, match="has no validation split, but test and train; choose one with --split"):
        segment([model], data=folders[0], masks=folders[1], split="validation")


def test_a_folder_without_splits_is_taken_whole_or_refused(model: str, folders: Folders) -> None:
    with pytest.raises(UserError, match="images outside of the folders train, val and test; leave --split out"):
        segment([model], data=folders[0], masks=folders[1], split="train")


def test_a_folder_of_images_and_one_of_masks(model: str, folders: Folders, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    (found,) = segment([model], data=folders[0], masks=folders[1], out=str(out))
    (result,) = found.results
    pairs = [drawn(index) for index in range(5)]
    (direct,) = segment_network(
        load_vit(model), [Image.fromarray(image) for image, _ in pairs], [mask for _, mask in pairs], void=None
    )
    assert result == direct
    assert (result.images, result.objects, result.head) == (5, 5, None)
    written = json.loads(out.read_text())
    assert written[0]["results"][0]["per_image"]["dino"] == list(result.per_image["dino"])


def test_training_images_choose_a_head_on_data_with_splits(model: str, scenes: Splits) -> None:
    (found,) = segment([model], data="scenes", training=12)
    (direct,) = segment_network(
        load_vit(model),
        scenes.test.images,
        scenes.test.masks,  # type: ignore[arg-type] # it has some
        void=None,
        training=(scenes.train.images, scenes.train.masks),  # type: ignore[arg-type]
    )
    assert found.results == (direct,)
    assert "fixed-head" in direct.scores
    (alone,) = segment([model], data="scenes", training=0)
    assert "fixed-head" not in alone.results[0].scores
    (of_training,) = segment([model], data="scenes", split="train")
    assert "fixed-head" not in of_training.results[0].scores  # it would be chosen on what it is judged by


def test_several_models_layers_and_masses(
    model: str, tiny_vit: Build, scenes: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_vit(tiny_vit(1, class_token=False, global_pool="avg"), tmp_path / "other")
    found = segment([model, str(tmp_path / "other")], data="scenes", layers="all", mass=[0.3, 0.6], limit=4)
    assert [(r.layer, r.mass) for r in found[0].results] == [(n, m) for n in range(3) for m in (0.3, 0.6)]
    assert [each.query for each in found] == ["class", "mean"]
    assert {result.images for each in found for result in each.results} == {4}
    shown = capsys.readouterr().err
    assert "(oracle)" in shown
    assert "other has no class token: the row is that of the patches' mean query" in shown


@pytest.mark.parametrize("source", ["rollout", "relevance"])
def test_maps_of_all_blocks(model: str, scenes: Splits, source: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = segment([model], data="scenes", source=source, limit=3)
    assert found.results[0].layer is None
    assert "oracle" not in capsys.readouterr().err  # one map leaves nothing to choose


def test_pascal_voc_leaves_void_out(model: str, tmp_path: Path) -> None:
    home = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "Annotations"):
        (home / name).mkdir(parents=True)
    for split, names in {"train": ("t1", "t2"), "val": ("v1", "v2", "v3")}.items():
        (home / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
        for index, name in enumerate(names):
            image, mask = drawn(index)
            mask[0] = 255
            Image.fromarray(image).save(home / f"JPEGImages/{name}.jpg")
            Image.fromarray(mask).save(home / f"SegmentationClass/{name}.png")
    (found,) = segment([model], data=str(tmp_path))
    assert (found.results[0].images, found.results[0].objects) == (3, 3)
    assert found.results[0].head is not None
    (counted,) = segment([model], data=str(tmp_path), void="none")
    assert counted.results[0].objects == 6


def test_masks_that_do_not_fit_are_named(model: str, folders: Folders) -> None:
    write_mask(folders, "b", drawn(1, 20, 20)[1])
    write_mask(folders, "c", np.zeros((24, 32, 3), dtype=np.uint8))
    with pytest.raises(UserError) as error:
        segment([model], data=folders[0], masks=folders[1])
    assert str(error.value).splitlines() == [
        f"{folders[1]}/b.png is 20×20, but its image is 24×32 (height × width); resize one",
        f"{folders[1]}/c.png is in colour; give masks with one number a pixel (a palette, or grey)",
    ]


def test_empty_masks_and_void_that_is_not_said(model: str, folders: Folders) -> None:
    mask = drawn(1)[1]
    mask[-1] = 255
    write_mask(folders, "b", mask)
    with pytest.raises(UserError, match="the masks hold 255 besides 1; say --void 255"):
        segment([model], data=folders[0], masks=folders[1])
    (without,) = segment([model], data=folders[0], masks=folders[1], void=255)
    assert without.results[0].objects == 5
    for name in "bcd":
        write_mask(folders, name, np.zeros_like(mask))
    (Path(folders[1]) / "a.bmp").unlink()
    write_mask(folders, "a", np.zeros_like(mask))
    write_mask(folders, "deep/e", np.zeros_like(mask))
    with pytest.raises(UserError, match=r"all 5 masks of .* are empty: they hold 0 \(background\) alone"):
        segment([model], data=folders[0], masks=folders[1])


def test_a_folder_without_masks(model: str, folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no masks; name another"):
        segment([model], data=folders[0], masks=str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"has no masks; name the folder that holds them with --masks"):
        segment([model], data=folders[0])
    with pytest.raises(UserError, match="digits has no masks"):
        segment([model], data="digits")
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        segment([model], data=str(tmp_path / "nowhere"))
    (Path(folders[1]) / "d.png").unlink()
    with pytest.raises(UserError, match=r"1 of the 5 images in .* have no mask of the same name in .*: 'd'"):
        segment([model], data=folders[0], masks=folders[1])


def test_models_that_do_not_serve(model: str, tiny_vit: Build, scenes: Splits, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"layers \[7\] do not exist; choose from -3 to 2"):
        segment([model], data="scenes", layers=[7])
    with pytest.raises(UserError, match="the models are no runs, so that nothing says which images to take"):
        segment([model])
    save_vit(tiny_vit(num_classes=0), tmp_path / "headless")
    with pytest.raises(UserError, match="has no classes, which relevance is for"):
        segment([str(tmp_path / "headless")], data="scenes", source="relevance")


def test_settings_are_checked_at_once(scenes: Splits) -> None:
    with pytest.raises(UserError) as error:
        segment([], masks="somewhere", mass=1.5, batch_size=0, limit=0, training=-1)
    assert len(str(error.value).splitlines()) == 6


def test_nothing_is_replaced_unasked(model: str, scenes: Splits, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    out.write_text("mine")
    with pytest.raises(UserError, match="exists; choose another name or replace it with --overwrite"):
        segment([model], data="scenes", out=str(out))
    assert out.read_text() == "mine"


def test_on_the_command_line(model: str, scenes: Splits, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["segment", model, "--data", "scenes", "--layers", "[0,-1]", "--mass", "0.5", "--void", "none"])
    assert "12 images of scenes, 12 objects" in capsys.readouterr().err


def test_two_networks_are_compared_on_the_same_images(
    model: str, tiny_vit: Build, scenes: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_vit(tiny_vit(1), tmp_path / "other")
    found = segment([model, str(tmp_path / "other")], data="scenes", layers=2)
    (first, last) = segmentation_differences(found)
    assert (first.models, first.layer, last.layer) == ((model, str(tmp_path / "other")), 1, 2)
    a, b = (each.results[1].per_image["dino"] for each in found)
    assert last.scores["dino"] == paired_difference(a, b)
    assert last.scores["dino"].difference.value == pytest.approx(np.mean(a) - np.mean(b))
    assert "centre-box" not in last.scores
    assert "differences on the same images" in capsys.readouterr().err
    assert segmentation_differences(found[:1]) == ()


def test_a_repaired_network_beside_itself(
    tiny_vit: Build, scenes: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = tiny_vit()
    with torch.no_grad():  # the second patch alone makes unit 7 of the second block fire, and its output huge
        planted.pos_embed[0, 2, 3] += 30
        mlp = planted.blocks[1].mlp
        mlp.fc1.weight[7], mlp.fc1.bias[7] = 20 * torch.eye(24)[3], -25
        mlp.fc2.weight[:, 7] = 5 * torch.eye(24)[4]
    save_vit(planted, tmp_path / "planted")
    plain, repaired = segment([str(tmp_path / "planted")], data="scenes", repair=True)
    assert (plain.model, repaired.model) == (str(tmp_path / "planted"), f"{tmp_path / 'planted'}, repaired")
    assert plain.results[0].per_head != repaired.results[0].per_head
    (alone,) = segment([str(tmp_path / "planted")], data="scenes")
    assert alone.results == plain.results
    said = capsys.readouterr().err.replace("\n", " ")
    assert "10 register neurons in blocks 0, 1, of 1.0 artefacts an image from block 1 on" in said


def test_a_network_without_artefacts_has_nothing_to_repair(tiny_vit: Build, scenes: Splits, tmp_path: Path) -> None:
    flat = tiny_vit()
    with torch.no_grad():
        flat.pos_embed.zero_()
        flat.patch_embed.proj.weight.zero_()
    save_vit(flat, tmp_path / "flat")
    with pytest.raises(UserError, match=r"flat: no patch of 12 images .* there is nothing to repair"):
        segment([str(tmp_path / "flat")], data="scenes", repair=True)
