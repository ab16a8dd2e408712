"""The verb `predict`: classes of image files by a trained run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from attention_transfer.arguments import verb
from attention_transfer.data import Normalise, Transform, eval_pixels, read_image
from attention_transfer.engine.hardware import Device, choose_hardware
from attention_transfer.errors import UserError, nearest, raise_all
from attention_transfer.evaluation.image_files import ImageFile, find_images
from attention_transfer.evaluation.network import LoadedRun, load_classifier
from attention_transfer.evaluation.overlay import Overlays, overlay_problems, picture_problems
from attention_transfer.evaluation.predictions import Prediction, as_csv, as_json, out_problems, show
from attention_transfer.places import expanded
from attention_transfer.training import Display
from attention_transfer.writing import whole_file

log = logging.getLogger("attention_transfer")

Probabilities = Literal["top", "all"]

_TOP = 3
_SHOWN = 20  # rows of the table where a file has them all


@verb
def predict(
    run: str,
    images: list[str],
    *,
    top: int | None = None,
    probabilities: Probabilities = "top",
    batch_size: int = 64,
    device: Device = "auto",
    overlay: str | None = None,
    out: str | None = None,
    overwrite: bool = False,
) -> list[Prediction]:
    """Classify images with a trained run.

    Images are turned upright, and brought to the channels, size and normalisation of the model. A file that is named
    must be readable; of folders and patterns, those that are not are left out and listed at the end.

    Args:
        run: folder of a finished run of `train` or of an exported model; or a model, e.g. timm/<name>.
        images: image files, folders (with all below them), or patterns in quotes, e.g. "photos/**/*.jpg".
        top: how many classes to give for each; default 3, or all where there are fewer.
        probabilities: top for those of the classes that are given, all for those of every class.
        batch_size: images a forward pass.
        device: where to compute: auto, cpu, cuda or mps; auto takes a GPU where there is one.
        overlay: folder for a picture of each image with the attention of the last block over it.
        out: file for the predictions, .csv or .json; default shows a table only.
        overwrite: replace that file, and pictures of the same names that were drawn before.

    Returns:
        A prediction for each image, in the order given.

    Raises:
        UserError: the run can't be loaded, or images that were named can't be read (each is named); nothing was
            written.
        OSError: the disk is full, or alike; no half of a file is left, and the same command can be given again.
    """
    problems = out_problems(out, run, images, overwrite=overwrite)
    problems += overlay_problems(overlay, run, images, overwrite=overwrite)
    raise_all(problems + _problems(top, probabilities, batch_size))
    files = find_images(images)
    raise_all([] if overlay is None else picture_problems(expanded(overlay), files))
    loaded = load_classifier(run)
    count = min(_TOP, len(loaded.classes)) if top is None else top
    if count > len(loaded.classes):
        raise UserError(f"top is {top}; choose from 1 to the {len(loaded.classes)} classes of the run")
    pixels = eval_pixels(loaded.spec)
    raise_all([found for file in files if file.named and isinstance(found := _read(file, pixels), str)])
    hardware = choose_hardware(device, 1)
    log.info("predicting on %s (%s)", hardware.device, hardware.reason)
    every, where = probabilities == "all", torch.device(hardware.device)
    with _drawing(overlay, loaded, overwrite=overwrite) as overlays:
        predictions, skipped = _predicted(loaded, files, pixels, overlays, batch_size, count, where, every=every)
        if not predictions:
            raise UserError(f"none of the {len(files)} images can be read; the first: {skipped[0]}")
        show(predictions, _SHOWN if out is not None else None)
        if overlays is not None:
            overlays.settle()
        if out is not None:
            written = as_json if Path(out).suffix == ".json" else as_csv
            with whole_file(expanded(out)) as file:
                file.write_text(written(predictions, loaded.classes), encoding="utf-8")
    if skipped:
        log.warning("%d of %d images were left out:\n%s", len(skipped), len(files), "\n".join(skipped))
    return predictions


def _problems(top: int | None, probabilities: str, batch_size: int) -> list[str]:
    problems = []
    if top is not None and top < 1:
        problems.append(f"top is {top}; give at least 1 class")
    if batch_size < 1:
        problems.append(f"batch_size is {batch_size}; give at least 1 image")
    if probabilities not in get_args(Probabilities):
        problems.append(f"probabilities is {probabilities!r}; {nearest(probabilities, get_args(Probabilities))}")
    return problems


def _drawing(overlay: str | None, loaded: LoadedRun, *, overwrite: bool) -> AbstractContextManager[Overlays | None]:
    if overlay is None:
        return nullcontext()
    return Overlays.open(expanded(overlay), loaded.network.student, loaded.spec, overwrite=overwrite)


@torch.inference_mode()
def _predicted(
    loaded: LoadedRun,
    files: Sequence[ImageFile],
    pixels: Transform,
    overlays: Overlays | None,
    batch_size: int,
    count: int,
    device: torch.device,
    *,
    every: bool,
) -> tuple[list[Prediction], list[str]]:
    """Predictions, and why files were left out. One batch of images is in memory at a time."""
    network, normalise = loaded.network.to(device), Normalise(loaded.spec).to(device)
    predictions: list[Prediction] = []
    skipped: list[str] = []
    with Display.open() as display, display.bar(f"predicting with {loaded.path.name}", len(files)) as bar:
        for batch, unread in _batches(files, pixels, batch_size):
            skipped += unread
            if batch:
                images = normalise(torch.stack([image for _, image in batch]).to(device))
                with nullcontext() if overlays is None else overlays.watching() as calls:
                    shares_BC = network(images).float().softmax(dim=-1).cpu()
                drawn = [None] * len(batch) if overlays is None or calls is None else overlays.maps(calls)
                for (file, image), shares_C, patches in zip(batch, shares_BC, drawn, strict=True):
                    picture = None if overlays is None else str(overlays.write(file.place, image, patches))
                    predictions.append(_prediction(file, shares_C, loaded.classes, count, picture, every=every))
            for _ in range(len(batch) + len(unread)):
                bar.advance()
    return predictions, skipped


def _prediction(
    file: ImageFile, shares_C: Tensor, classes: Sequence[str], count: int, picture: str | None, *, every: bool
) -> Prediction:
    best = shares_C.topk(count)
    return Prediction(
        file.path,
        tuple(classes[i] for i in best.indices.tolist()),
        _rounded(best.values),
        _rounded(shares_C) if every else None,
        picture,
    )


def _rounded(shares: Tensor) -> tuple[float, ...]:
    return tuple(round(share, 6) for share in shares.tolist())


def _batches(
    files: Sequence[ImageFile], pixels: Transform, size: int
) -> Iterator[tuple[list[tuple[ImageFile, Tensor]], list[str]]]:
    """Files with their images, uint8 (channels, height, width), and what could not be read."""
    with ThreadPoolExecutor() as pool:  # decoding releases Python's lock
        for start in range(0, len(files), size):
            chunk = files[start : start + size]
            found = list(zip(chunk, pool.map(lambda file: _read(file, pixels), chunk), strict=True))
            yield (
                [(file, image) for file, image in found if isinstance(image, Tensor)],
                [reason for _, reason in found if isinstance(reason, str)],
            )


def _read(file: ImageFile, pixels: Transform) -> Tensor | str:
    """An image as the model takes it, or why it can't be read."""
    try:
        return pixels(read_image(file.path))
    except UserError as error:
        return str(error)
