"""From a data set to what the engine is given: augmented, validated and tested images, and their normalisation."""

from __future__ import annotations

import logging
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from attention_transfer.config.recipe import ResolvedRecipe
from attention_transfer.data import (
    RANDOM_ERASING,
    FileImages,
    ImageSet,
    Normalise,
    SharedPixels,
    Split,
    Splits,
    Twin,
    choose_augment,
    eval_pixels,
    find_overlap,
    is_flat,
    keep_decoded,
    keep_pixels,
    mode_of,
    train_pixels,
)
from attention_transfer.engine.launchers import this_process
from attention_transfer.training.run_folder import RunFolder
from attention_transfer.vit import ViTSpec, size_problems
from attention_transfer.writing import write_whole

log = logging.getLogger("attention_transfer")

OVERLAP = "overlap.txt"
"""What a run calls the list of test and validation images that it was trained on."""

_SAID: set[str] = set()
"""Notes that were on the terminal: the runs of a comparison have them all in common."""

_FEW = 3


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
    return [*problems, *size_problems(image_size)]


def subset_lines(train: Split, subset: NDArray[np.int64]) -> str:
    """The chosen training images, a line each: the path of its file, or its index where it has no file.

    Bytes of a name that are no UTF-8, line ends and backslashes are written as Python's escapes.
    """
    if not isinstance(train.images, FileImages):
        return "".join(f"{index}\n" for index in subset.tolist())
    return "".join(f"{_escaped(path)}\n" for path in train.images.take(subset).paths)


def keep_overlap(
    splits: Splits,
    folder: RunFolder,
    *,
    data: str,
    effect: str = "the reported accuracy may be too high",
    subset: NDArray[np.int64] | None = None,
) -> dict[str, int] | None:
    """Warn of test and validation images that are trained on, too, and list them in the run's `overlap.txt`.

    Of several processes that train together, the first does.

    Args:
        splits: the data set.
        folder: of the run.
        data: the data set, as it was asked for.
        effect: what is wrong with the results then, in words.
        subset: indices of the training images that are used; default all.

    Returns:
        How many there are, by split; `None` where they were not looked for.

    Raises:
        UserError: an image file can't be read any more.
    """
    if this_process() > 0:
        return None
    twins = find_overlap(splits, subset)
    if twins is None:
        return None
    sizes = {"test": len(splits.test), "validation": len(splits.validation)}
    counts = {split: sum(twin.split == split for twin in twins) for split in sizes}
    listed = folder.path / OVERLAP
    if not twins:
        listed.unlink(missing_ok=True)  # a run that is resumed, with a data set that was fixed
        return counts
    write_whole(listed, "".join(_row(twin) for twin in twins))
    places = [f"{counts[split]:,} of {sizes[split]:,} {split} images" for split in sizes if counts[split]]
    few = [f"{_shown(twin.image, twin.split)} is {_shown(twin.train[0], 'train')}" for twin in twins[:_FEW]]
    more = [f"{len(twins) - _FEW:,} more"] if len(twins) > _FEW else []
    trained = len(splits.train if subset is None else subset)
    further = f"; attention-transfer data {shlex.quote(data)} finds equal pixels in different files, too"
    _say(
        f"{splits.name}: among the {trained:,} training images, too: {' and '.join(places)} ({', '.join(few + more)}), "
        f"so {effect}; the run's {OVERLAP} lists them"
        + ("" if is_flat(Path(data).expanduser()) else further),  # the verb needs classes
        logging.WARNING,
    )
    return counts


def inputs_for(
    spec: ViTSpec,
    splits: Splits,
    recipe: ResolvedRecipe,
    *,
    subset: NDArray[np.int64] | None = None,
    shared: SharedPixels | None = None,
) -> Inputs:
    """The images of a data set for a network; how the splits were made is logged.

    Args:
        spec: the network.
        splits: the data set.
        recipe: how training images are varied.
        subset: indices of the training images to use; default all.
        shared: where decoded image files are kept for other processes, too; default in the memory of this one.
    """
    for note in splits.notes:
        _say(f"{splits.name}: {note}", logging.DEBUG)
    part = splits.train if subset is None else splits.train.take(subset)
    augment, _ = choose_augment(spec, recipe.augment, len(part))
    pixels, images = eval_pixels(spec), keep_decoded(part.images, "training", shared=shared, mode=mode_of(spec))
    return Inputs(
        train=ImageSet(images, part.labels, train_pixels(spec, augment)),
        validation=keep_pixels(splits.validation.with_transform(pixels), "validation", shared=shared),
        test=keep_pixels(splits.test.with_transform(pixels), "test", shared=shared),
        prepare=Normalise(spec, erase=RANDOM_ERASING if augment == "heavy" else 0.0),
    )


def _say(text: str, level: int) -> None:
    """On the terminal once; each run's own log has it."""
    log.log(logging.DEBUG if text in _SAID else level, "%s", text)
    _SAID.add(text)


def _row(twin: Twin) -> str:
    """A line of `overlap.txt`."""
    images = (_escaped(image).replace("\t", "\\t") for image in (twin.image, *twin.train))
    return "\t".join([twin.split, *images]) + "\n"


def _shown(image: Path | int, split: str) -> str:
    return f"{split} {image}" if isinstance(image, int) else _escaped(image)


def _escaped(image: Path | int) -> str:
    """An index, or a path on one line in UTF-8."""
    path = os.fsencode(str(image)).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return path.replace("\n", "\\n").replace("\r", "\\r")
