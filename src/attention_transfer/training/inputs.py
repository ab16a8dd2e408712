"""From a data set to what the engine is given: augmented, validated and tested images, and their normalisation."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from attention_transfer.data import (
    RANDOM_ERASING,
    FileImages,
    ImageSet,
    Normalise,
    Split,
    Splits,
    choose_augment,
    eval_pixels,
    keep_decoded,
    keep_pixels,
    train_pixels,
)
from attention_transfer.training.recipe import Recipe
from attention_transfer.vit import ViTSpec

log = logging.getLogger("attention_transfer")

_SAID: set[str] = set()
"""Notes that were on the terminal: the runs of a comparison have them all in common."""


@dataclass(frozen=True)
class Inputs:
    """Images for one network, as pixels (uint8), and what turns batches of them into its input, on the device.

    Attributes:
        train: labelled images, augmented.
        validation: what the epoch is chosen by.
        test: what is reported.
        prepare: normalisation, with erasing where the augmentation has it.
    """

    train: ImageSet
    validation: Dataset[Any]
    test: Dataset[Any]
    prepare: Normalise


def input_problems(seed: int, image_size: int | None) -> list[str]:
    """What is wrong with a seed and a size, a sentence each."""
    problems = []
    if not 0 <= seed < 2**32:  # what numpy's global generator takes
        problems.append(f"seed is {seed}; give a number from 0 to {2**32 - 1}")
    if image_size is not None and image_size < 1:
        problems.append(f"image_size is {image_size}; give a number of pixels of at least 1")
    return problems


def subset_lines(train: Split, subset: NDArray[np.int64]) -> str:
    """The chosen training images, a line each: the path of its file, or its index where it has no file.

    Bytes of a name that are no UTF-8, line ends and backslashes are written as Python's escapes.
    """
    if not isinstance(train.images, FileImages):
        return "".join(f"{index}\n" for index in subset.tolist())
    paths = (os.fsencode(path).replace(b"\\", b"\\\\") for path in train.images.take(subset).paths)
    texts = (path.decode("utf-8", "backslashreplace") for path in paths)
    names = (text.replace("\n", "\\n").replace("\r", "\\r") for text in texts)
    return "".join(f"{name}\n" for name in names)


def inputs_for(
    spec: ViTSpec, splits: Splits, recipe: Recipe, *, name: str, subset: NDArray[np.int64] | None = None
) -> Inputs:
    """The images of a data set for a network; choices are logged with their reasons.

    Args:
        spec: the network.
        splits: the data set.
        recipe: how training images are varied.
        name: what to call the run in the log.
        subset: indices of the training images to use; default all.
    """
    for note in splits.notes:
        said = f"{splits.name}: {note}"
        log.log(logging.DEBUG if said in _SAID else logging.INFO, "%s", said)  # each run's own log has it
        _SAID.add(said)
    part = splits.train if subset is None else splits.train.take(subset)
    augment, why = choose_augment(spec, recipe.augment, len(part))
    log.info("%s: augmentation %s (%s)", name, augment, why)
    pixels = eval_pixels(spec)
    return Inputs(
        train=ImageSet(keep_decoded(part.images, "training"), part.labels, train_pixels(spec, augment)),
        validation=keep_pixels(splits.validation.with_transform(pixels), "validation"),
        test=keep_pixels(splits.test.with_transform(pixels), "test"),
        prepare=Normalise(spec, erase=RANDOM_ERASING if augment == "heavy" else 0.0),
    )
