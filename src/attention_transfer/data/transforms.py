"""How an image becomes a model's input.

Images travel as uint8, a quarter of the bytes of floats, and are normalised on the device that the model is on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode, functional

from attention_transfer.config.choices import Augment
from attention_transfer.data.decoding import in_mode
from attention_transfer.errors import UserError
from attention_transfer.vit import ViTSpec

Transform = Callable[[Image.Image], Tensor]
ImageTransform = Callable[[Image.Image], Image.Image]

SMALL = 64
"""Images with fewer pixels a side are signs rather than scenes: they are neither cropped nor mirrored."""

LARGEST = 2**25
"""Pixels above which a resized image is not formed: only its centre crop is computed."""

CROP = 0.875
"""Share of the shorter side that the centre crop of evaluation keeps (224 of 256, as in both papers)."""

RANDOM_ERASING = 0.25
"""Share of the images in which "heavy" erases a rectangle."""


def eval_transform(spec: ViTSpec) -> Transform:
    """Deterministic: to the model's channels, size and normalisation; float32 (channels, height, width)."""
    return _Normalised(eval_pixels(spec), Normalise(spec))


def eval_pixels(spec: ViTSpec) -> Transform:
    """As `eval_transform`, before normalisation: uint8 (channels, height, width).

    Images of scenes are resized so that the centre crop keeps 87.5 % of the shorter side; small ones are resized whole.
    """
    height, width = spec.image_size
    scene = min(height, width) >= SMALL
    return _pixels(spec, [_Centre(height, width) if scene else _resize(height, width)])


def seen_box(spec: ViTSpec, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """What `eval_pixels` leaves of an image of a size (width, height): left, top, right, bottom, in its own pixels."""
    height, width = spec.image_size
    if min(height, width) < SMALL or size == (width, height):
        return 0.0, 0.0, float(size[0]), float(size[1])
    return _crop_box(size, height, width)


def train_pixels(spec: ViTSpec, augment: Augment = "auto", *, images: int = 0) -> Transform:
    """Augmented images, uint8 (channels, height, width).

    Args:
        spec: the model.
        augment: how much.

            - "none": as in evaluation;
            - "shift": a small rotation, shift and change of size, no mirroring, for signs;
            - "light": random crops (8 % of the area or more) and mirroring;
            - "medium": the same, and RandAugment (`rand-m9-mstd0.5-inc1`);
            - "heavy": the same, and random erasing of one image in four, which `Normalise` does on the device;
            - "auto": see `choose_augment`.
        images: how many images there are, for "auto".
    """
    chosen = choose_augment(spec, augment, images)[0]
    if chosen == "none":
        return eval_pixels(spec)
    height, width = spec.image_size
    if chosen == "shift":
        jitter = transforms.RandomAffine(
            degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=InterpolationMode.BILINEAR
        )
        return _pixels(spec, [_resize(height, width), jitter])
    crop = transforms.RandomResizedCrop((height, width), interpolation=InterpolationMode.BICUBIC)
    steps: list[ImageTransform] = [crop, transforms.RandomHorizontalFlip()]
    if chosen in ("medium", "heavy"):
        mean = spec.mean if spec.channels == 3 else spec.mean * 3
        settings = {
            "translate_const": int(0.45 * min(height, width)),
            "img_mean": tuple(round(255 * m) for m in mean),
            # At 10, which one draw in forty is cut down to, "posterise" would keep 0 bits: black, and Pillow refuses.
            "magnitude_max": 9.99,
        }
        steps.append(_InColour(rand_augment_transform("rand-m9-mstd0.5-inc1", settings)))
    return _pixels(spec, steps)


def choose_augment(spec: ViTSpec, augment: Augment, images: int) -> tuple[Augment, str]:
    """What "auto" means for a model and a number of images, and why; other choices are returned as they are.

    Raises:
        UserError: there is no augmentation of that name.
    """
    if augment not in get_args(Augment):
        raise UserError(f"recipe.augment is {augment!r}; choose from {', '.join(get_args(Augment))}")
    if augment != "auto":
        return augment, "as asked for"
    if min(spec.image_size) < SMALL:
        return "shift", f"the model takes images of {spec.image_size[0]}x{spec.image_size[1]} pixels"
    if images < 10_000:
        return "light", f"{images} images, fewer than 10,000"
    if images < 100_000:
        return "medium", f"{images} images, fewer than 100,000"
    return "heavy", f"{images} images, 100,000 or more"


class Normalise(nn.Module):
    """Turn uint8 pixels into a model's normalised float32, on the device they are on; optionally with random erasing.

    Args:
        spec: the model.
        erase: share of the images of a batch, in training mode, in which a rectangle is overwritten with noise
            (random erasing; Zhong et al. 2020).
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, spec: ViTSpec, *, erase: float = 0.0) -> None:
        super().__init__()
        factor = np.array([1 / (255 * s) for s in spec.std], dtype=np.float32)
        offset = np.array([m / s for m, s in zip(spec.mean, spec.std, strict=True)], dtype=np.float32)
        self.register_buffer("factor", torch.from_numpy(factor)[:, None, None], persistent=False)
        self.register_buffer("offset", torch.from_numpy(offset)[:, None, None], persistent=False)
        self.erase = erase

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels ([B,] channels, height, width), uint8, to float32 of the same shape."""
        images = pixels * self.factor - self.offset
        if self.training and self.erase > 0:
            erasing = RandomErasing(self.erase, mode="pixel", device=str(images.device))
            images = erasing(images)
        return images


def _resize(height: int, width: int) -> ImageTransform:
    """To this size, whatever the proportions were."""
    resize: ImageTransform = transforms.Resize((height, width), InterpolationMode.BICUBIC)
    return resize


def mode_of(spec: ViTSpec) -> str:
    """The mode of the images that a model takes: "L" or "RGB".

    Raises:
        UserError: it takes other channels.
    """
    if spec.channels not in (1, 3):
        raise UserError(f"{spec.name} takes {spec.channels} channels; images have 1 or 3")
    return "L" if spec.channels == 1 else "RGB"


def _pixels(spec: ViTSpec, steps: list[ImageTransform]) -> Transform:
    return _Pixels(mode_of(spec), tuple(steps))


# Classes instead of closures: processes that load images get the transform by pickle where they are not forked.


@dataclass(frozen=True)
class _Pixels:
    """An image in this mode, after these steps, as uint8 (channels, height, width)."""

    mode: str
    steps: tuple[ImageTransform, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        image = in_mode(image, self.mode)
        for step in self.steps:
            image = step(image)
        return torch.from_numpy(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1).copy())


@dataclass(frozen=True)
class _Normalised:
    pixels: Transform
    normalise: Normalise

    def __call__(self, image: Image.Image) -> Tensor:
        normalised: Tensor = self.normalise(self.pixels(image))
        return normalised


@dataclass(frozen=True)
class _Centre:
    """The centre crop of the image, resized so that the crop keeps `CROP` of the shorter side."""

    height: int
    width: int

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.size == (self.width, self.height):
            return image
        shorter, longer = sorted(image.size)
        side = round(max(self.height, self.width) / CROP)
        if side * side * longer <= LARGEST * shorter:
            image = functional.resize(image, side, InterpolationMode.BICUBIC)
            cropped: Image.Image = functional.center_crop(image, (self.height, self.width))
            return cropped
        # A strip of 30,000x10 pixels would become 768,000x256 before it is cropped: only the crop is computed.
        box = _crop_box(image.size, self.height, self.width)
        return image.resize((self.width, self.height), Image.Resampling.BICUBIC, box=box)


def _crop_box(size: tuple[int, int], height: int, width: int) -> tuple[float, float, float, float]:
    """What `_Centre` leaves of an image of a size (width, height), as torchvision resizes and crops."""
    shorter, longer = sorted(size)
    side = round(max(height, width) / CROP)
    edges: list[float] = []
    for length, kept in zip(size, (width, height), strict=True):
        resized = side if length == shorter else int(side * longer / shorter)
        start = round((resized - kept) / 2)
        edges += [start / resized * length, (start + kept) / resized * length]
    left, right, top, bottom = edges
    return left, top, right, bottom


@dataclass(frozen=True)
class _InColour:
    """RandAugment works on colours; a grey image goes there and back."""

    step: ImageTransform

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.step(image) if image.mode == "RGB" else self.step(image.convert("RGB")).convert(image.mode)
