"""`data.eval_transform` in the configuration of other libraries, and how far they are from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from attention_transfer.data import eval_transform
from attention_transfer.data.transforms import CROP, SMALL
from attention_transfer.vit import ViTSpec

Pixels = Callable[[Image.Image], Tensor]
"""An image to a model's input, (channels, height, width), normalised."""


def as_data(spec: ViTSpec, classes: Sequence[str]) -> dict[str, Any]:
    """The preprocessing as plain data, for a program in any language."""
    height, width = spec.image_size
    return {
        "colour": "grey (ITU-R 601 luma)" if spec.channels == 1 else "RGB",
        "resize": {"shorter_side": _side(spec)} if _cropped(spec) else {"height": height, "width": width},
        "interpolation": "bicubic, with antialiasing",
        "center_crop": {"height": height, "width": width} if _cropped(spec) else None,
        "pixels": "divided by 255, then (pixel - mean) / std for each channel",
        "mean": list(spec.mean),
        "std": list(spec.std),
        "input": {"name": "images", "dtype": "float32", "shape": ["batch", spec.channels, height, width]},
        "output": {"name": "logits", "dtype": "float32", "shape": ["batch", spec.classes]},
        "classes": list(classes),
    }


def for_timm(spec: ViTSpec) -> dict[str, Any]:
    """Fields of timm's `pretrained_cfg`."""
    height, width = spec.image_size
    crop = {"crop_pct": 1.0, "crop_mode": "squash"}
    if _cropped(spec):
        # timm cuts the side down to whole pixels where `eval_transform` rounds it.
        longer, share = max(height, width), CROP
        if math.floor(longer / share) != _side(spec):
            share = longer / (_side(spec) + 0.5)
        crop = {"crop_pct": share, "crop_mode": "center"}
    return {
        "input_size": [spec.channels, height, width],
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": "bicubic",
        **crop,
    }


def for_transformers(spec: ViTSpec) -> dict[str, Any]:
    """The content of `preprocessor_config.json`."""
    height, width = spec.image_size
    crop: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    if _cropped(spec):
        crop = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": _side(spec)},
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
            "do_convert_rgb": True,
        }
    return {
        **crop,
        "do_resize": True,
        "resample": int(Image.Resampling.BICUBIC),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }


def grey_levels_apart(spec: ViTSpec, pixels: Pixels) -> float:
    """The largest difference between another preprocessing and `data.eval_transform`, in grey levels of 255.

    It is measured on a picture with edges and gradients, larger than the model's input and of another shape.
    """
    height, width = spec.image_size
    rows, columns, colours = np.mgrid[: height * 2, : width * 3, :3]
    waves = 127.5 * (1 + np.sin(rows / height * 9 + colours) * np.cos(columns / width * 7))
    waves[height // 2 : height, width : 2 * width] = 255
    picture = Image.fromarray(waves.round().astype(np.uint8)).convert("L" if spec.channels == 1 else "RGB")
    ours, theirs = eval_transform(spec)(picture), pixels(picture)
    apart = (ours - theirs).abs().amax(dim=(1, 2))  # a grey input stands for three equal channels
    return max(255 * std * float(value) for std, value in zip((spec.std * 3)[: len(apart)], apart, strict=True))


def _cropped(spec: ViTSpec) -> bool:
    return min(spec.image_size) >= SMALL


def _side(spec: ViTSpec) -> int:
    """Pixels of the shorter side before the centre is cropped."""
    return round(max(spec.image_size) / CROP)
