from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from attention_transfer.data import (
    ArrayImages,
    FileImages,
    Split,
    eval_pixels,
    eval_transform,
    read_image,
    train_pixels,
)
from attention_transfer.data import transforms as transforms_module
from attention_transfer.errors import UserError
from attention_transfer.vit import ViTSpec, describe

Build = Callable[..., Any]
Specs = Callable[[int], ViTSpec]
CHANNELS = pytest.mark.parametrize("channels", [1, 3])


@pytest.fixture
def spec(tiny_vit: Build) -> Specs:
    """Input of a model of that many channels: 8 by 16 pixels."""

    def build(channels: int) -> ViTSpec:
        statistics = {"mean": (0.5, 0.25, 0.125)[:channels], "std": (0.5, 0.25, 0.2)[:channels]}
        model = tiny_vit(in_chans=channels, img_size=(8, 16), pretrained_cfg_overlay=statistics)
        return describe(model)

    return build


@CHANNELS
@pytest.mark.parametrize("size", [(16, 8), (31, 20), (5, 5)])
@pytest.mark.parametrize("make", [eval_pixels, train_pixels])
def test_every_image_gets_the_models_shape(make: Any, size: tuple[int, int], channels: int, spec: Specs) -> None:
    for mode in ("L", "RGB"):
        tensor = make(spec(channels))(Image.new(mode, size))
        assert (tensor.shape, tensor.dtype) == ((channels, 8, 16), torch.uint8)


def test_pixels_are_normalised_channel_by_channel(spec: Specs) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    tensor = eval_transform(spec(3))(Image.fromarray(pixels))
    expected = (pixels / 255 - np.array([0.5, 0.25, 0.125])) / np.array([0.5, 0.25, 0.2])
    np.testing.assert_allclose(tensor.numpy(), expected.transpose(2, 0, 1), atol=1e-6)


def test_a_grey_image_is_the_same_in_every_channel_of_a_colour_model(spec: Specs) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16), dtype=np.uint8)
    tensor = eval_transform(spec(3))(Image.fromarray(pixels))
    grey = tensor * torch.tensor([0.5, 0.25, 0.2])[:, None, None] + torch.tensor([0.5, 0.25, 0.125])[:, None, None]
    torch.testing.assert_close(grey[0], grey[1])
    torch.testing.assert_close(grey[0], grey[2])
    np.testing.assert_allclose(grey[0].numpy(), pixels / 255, atol=1e-6)


def test_evaluation_is_deterministic_and_training_is_not(spec: Specs) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16), dtype=np.uint8))
    evaluate, train = eval_transform(spec(1)), train_pixels(spec(1))
    assert torch.equal(evaluate(image), evaluate(image))
    assert not torch.equal(train(image), train(image))


def test_training_never_mirrors_an_image(spec: Specs) -> None:
    """A mirrored digit is another sign: the bright half stays where it is."""
    pixels = np.zeros((8, 16), dtype=np.uint8)
    pixels[:, :8] = 255
    train = train_pixels(spec(1))
    for _ in range(30):
        tensor = train(Image.fromarray(pixels))
        assert tensor[:, :, :8].float().mean() > tensor[:, :, 8:].float().mean()


def test_a_model_of_two_channels_is_refused(tiny_vit: Build) -> None:
    with pytest.raises(UserError, match="2 channels; images have 1 or 3"):
        eval_transform(describe(tiny_vit(in_chans=2, pretrained_cfg_overlay={"mean": (0, 0), "std": (1, 1)})))


def test_a_split_becomes_a_data_set_of_tensors_and_labels(spec: Specs) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 16), dtype=np.uint8)
    split = Split(ArrayImages(images), np.array([0, 1, 2, 3, 4, 5])).take(np.array([4, 1, 2]))
    transform = eval_transform(spec(1))
    data = split.with_transform(transform)
    assert len(data) == 3
    image, label = data[0]
    assert torch.equal(image, transform(Image.fromarray(images[4])))
    assert (label.item(), label.dtype) == (4, torch.int64)
    stored = data.materialised()
    assert stored.tensors[1].tolist() == [4, 1, 2]
    assert torch.equal(stored.tensors[0], torch.stack([data[i][0] for i in range(3)]))


@pytest.fixture
def scenes(tiny_vit: Build) -> ViTSpec:
    """Input of a model of 3 channels and 96 by 96 pixels, which takes crops."""
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return describe(tiny_vit(in_chans=3, img_size=96, patch_size=32, pretrained_cfg_overlay=statistics))


@pytest.mark.parametrize("size", [(1, 1), (30_000, 10), (10, 30_000), (1, 5_000), (2, 3)])
@pytest.mark.parametrize("augment", ["none", "light", "heavy"])
def test_images_of_extreme_shape_become_inputs(augment: Any, size: tuple[int, int], scenes: ViTSpec) -> None:
    image = Image.new("RGB", size, (200, 100, 50))
    pixels = train_pixels(scenes, augment)(image)
    assert (pixels.shape, pixels.dtype) == ((3, 96, 96), torch.uint8)
    if augment != "heavy":
        assert (pixels == torch.tensor([200, 100, 50])[:, None, None]).all()


@pytest.mark.parametrize("size", [(300, 20), (20, 300), (97, 180), (40, 41)])
def test_only_the_crop_of_a_long_strip_is_computed_and_it_is_the_same(
    size: tuple[int, int], scenes: ViTSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    waves = np.stack([np.sin(columns / 5 + k) * np.cos(rows / 3 - k) for k in range(3)], axis=-1)
    image, pixels = Image.fromarray((128 + 100 * waves).astype(np.uint8)), eval_pixels(scenes)
    whole = pixels(image).int()
    monkeypatch.setattr(transforms_module, "LARGEST", 0)
    # Columns and rows are resized one after the other, in an order of Pillow's choice, and rounded in between.
    assert (pixels(image).int() - whole).abs().max() <= 3


def test_evaluation_crops_the_centre_as_torchvision_does(scenes: ViTSpec) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 120, 3), dtype=np.uint8))
    reference = transforms.Compose(
        [transforms.Resize(110, InterpolationMode.BICUBIC), transforms.CenterCrop(96), transforms.PILToTensor()]
    )
    assert torch.equal(eval_pixels(scenes)(image), reference(image))


def test_the_strongest_posterisation_keeps_a_bit(scenes: ViTSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise on the magnitude reaches its bound once in forty draws; no bits are black, or refused by Pillow."""
    kept: list[int] = []

    def posterize(image: Image.Image, bits: int) -> Image.Image:
        kept.append(bits)
        return image

    monkeypatch.setattr(random, "gauss", lambda mean, deviation: 99.0)
    monkeypatch.setattr(ImageOps, "posterize", posterize)
    augment = train_pixels(scenes, "medium")
    for _ in range(200):
        augment(Image.new("RGB", (96, 96)))
    assert set(kept) == {1}


def test_files_are_images_by_index(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in ("a", "bé", "long name")]
    for shade, path in enumerate(paths):
        Image.new("L", (2, 2), shade).save(path)
    images = FileImages(paths)
    assert images.paths == tuple(paths)
    assert [np.asarray(images[index])[0, 0] for index in range(3)] == [0, 1, 2]
    assert np.asarray(images[-1])[0, 0] == 2
    chosen = images.take(np.array([2, 0]))
    assert chosen.paths == (paths[2], paths[0])
    assert (len(images), len(chosen), len(FileImages([]))) == (3, 2, 0)
    with pytest.raises(IndexError):
        images[3]


def save(image: Image.Image, path: Path, **options: Any) -> Image.Image:
    image.save(path, **options)
    return read_image(path)


@CHANNELS
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16"])
def test_an_image_file_of_any_mode_keeps_its_brightness(mode: str, channels: int, spec: Specs, tmp_path: Path) -> None:
    """Left half black, right half mid-grey (white where there are only two shades)."""
    level = 255 if mode == "1" else 128
    pixels = np.zeros((8, 16), dtype=np.uint8)
    pixels[:, 8:] = level
    stretched = Image.fromarray(pixels.astype(np.uint16) * 257)  # 0 to 65535 for 0 to 255
    image = stretched if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    transform, model = eval_transform(spec(channels)), spec(channels)
    tensor = transform(save(image, tmp_path / "image.png"))
    for channel in range(channels):
        brightness = tensor[channel] * model.std[channel] + model.mean[channel]
        expected = np.repeat([[0, level / 255]], 8, axis=1).repeat(8, axis=0)
        np.testing.assert_allclose(brightness.numpy(), expected, atol=0.01)


def test_a_colour_image_with_an_opaque_alpha_channel_is_that_without(spec: Specs, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    image, transform = Image.fromarray(pixels), eval_transform(spec(3))
    assert torch.equal(transform(save(image.convert("RGBA"), tmp_path / "image.png")), transform(image))


def test_a_photograph_taken_sideways_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees to view
    assert save(image, tmp_path / "photo.jpg", exif=exif).size == (10, 20)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no image .*nothing\.png"):
        read_image(tmp_path / "nothing.png")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("content", [b"hello\n", b""], ids=["text", "empty"])
def test_a_file_that_is_no_image_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(UserError, match=r"is (not an image|empty)"):
        read_image(str(tmp_path / "image.png"))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_refused_and_not_filled_up(share: float, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=f"image.{suffix} is (damaged|not an image)"):
        read_image(path)
