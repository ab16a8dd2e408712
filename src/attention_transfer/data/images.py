"""Labelled images in memory, and how they become a model's input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torchvision import transforms

from attention_transfer.errors import UserError
from attention_transfer.vit import ViTSpec

Transform = Callable[[Image.Image], Tensor]


class ImageSet(Dataset[tuple[Tensor, Tensor]]):
    """Images with labels; each item is (channels, height, width) in the model's normalisation, and an int64 class."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], transform: Transform) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(Image.fromarray(self.images[index])), torch.tensor(self.labels[index])

    def materialised(self) -> TensorDataset:
        """Every item once, as tensors in memory; for a deterministic transform of a small set."""
        items = [self[i] for i in range(len(self))]
        return TensorDataset(torch.stack([image for image, _ in items]), torch.stack([label for _, label in items]))


@dataclass(frozen=True)
class Split:
    """Raw images of one split: uint8 (n, height, width[, 3]), and their classes, int64 (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def take(self, indices: NDArray[np.int64]) -> Split:
        """The images at these indices."""
        return Split(self.images[indices], self.labels[indices])

    def with_transform(self, transform: Transform) -> ImageSet:
        """The split as a dataset for a model."""
        return ImageSet(self.images, self.labels, transform)


@dataclass(frozen=True)
class Splits:
    """A data set cut into training, validation and test; the test split is read once, at the end."""

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split


def eval_transform(spec: ViTSpec) -> Transform:
    """Deterministic: to the model's channels, size and normalisation."""
    transform: Transform = transforms.Compose([_to_mode(spec), *_resize(spec), *_to_tensor(spec)])
    return transform


def train_transform(spec: ViTSpec) -> Transform:
    """Light augmentation that keeps a digit a digit: a small rotation, shift and change of size; no flips."""
    jitter = transforms.RandomAffine(
        degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=transforms.InterpolationMode.BILINEAR
    )
    transform: Transform = transforms.Compose([_to_mode(spec), *_resize(spec), jitter, *_to_tensor(spec)])
    return transform


def read_image(path: str | Path) -> Image.Image:
    """Open an image file, upright.

    Raises:
        UserError: there is no such file, or it is not an image, or it is truncated.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).copy()
    except FileNotFoundError as error:
        raise UserError(f"there is no image {path}; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; name image files") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image that can be read; convert it to PNG or JPEG") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is damaged and can't be read ({error}); replace it") from error


def _to_mode(spec: ViTSpec) -> Callable[[Image.Image], Image.Image]:
    if spec.channels not in (1, 3):
        raise UserError(f"{spec.name} takes {spec.channels} channels; images have 1 or 3")
    mode = "L" if spec.channels == 1 else "RGB"
    return lambda image: image if image.mode == mode else _eight_bits(image).convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greys brought to 8 bits; Pillow's own conversion would cut everything above 255 to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64) // 256).clip(0, 255).astype(np.uint8))


def _resize(spec: ViTSpec) -> Sequence[Callable[[Image.Image], Image.Image]]:
    size = (spec.image_size[1], spec.image_size[0])
    return [lambda image: image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)]


def _to_tensor(spec: ViTSpec) -> Sequence[Callable[[Image.Image], Tensor]]:
    """uint8 pixels to normalised float32; in one step, since for small images the steps cost more than the pixels."""
    factor = np.array([1 / (255 * s) for s in spec.std], dtype=np.float32)
    offset = np.array([m / s for m, s in zip(spec.mean, spec.std, strict=True)], dtype=np.float32)

    def convert(image: Image.Image) -> Tensor:
        pixels_HWC = np.atleast_3d(np.asarray(image)) * factor - offset
        return torch.from_numpy(pixels_HWC.transpose(2, 0, 1).copy())

    return [convert]
