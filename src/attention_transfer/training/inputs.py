"""From a data set to what the engine is given: augmented, validated and tested images, and their normalisation."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from attention_transfer.data import (
    RANDOM_ERASING,
    ImageSet,
    Normalise,
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
        log.info("%s: %s", splits.name, note)
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
