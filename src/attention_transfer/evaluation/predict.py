"""The verb `predict`: classes of image files by a trained run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from attention_transfer.artifacts import MODEL_FILES
from attention_transfer.config.predict import Predict
from attention_transfer.data import Normalise, Transform, eval_pixels, read_image
from attention_transfer.engine.hardware import choose_hardware
from attention_transfer.errors import UserError, raise_all
from attention_transfer.evaluation.classifier import LoadedRun, load_classifier
from attention_transfer.evaluation.image_files import ImageFile, find_images
from attention_transfer.evaluation.overlay import Overlays, overlay_problems, picture_problems
from attention_transfer.evaluation.predictions import Prediction, as_csv, as_json, show
from attention_transfer.places import expanded, out_problems
from attention_transfer.training import Display
from attention_transfer.writing import write_whole

log = logging.getLogger("attention_transfer")

_TOP = 3
_SHOWN = 20  # rows of the table where a file has them all


def predict_images(config: Predict) -> list[Prediction]:
    """The verb `predict`."""
    run, images, overlay, out, overwrite = config.run, config.images, config.overlay, config.out, config.overwrite
    problems = out_problems(out, ".csv", ".json", overwrite=overwrite, data=images, models=[run], names=MODEL_FILES)
    problems += overlay_problems(overlay, run, images, overwrite=overwrite)
    raise_all(problems + config.problems())
    files = find_images(images)
    raise_all([] if overlay is None else picture_problems(expanded(overlay), files))
    loaded = load_classifier(run)
    count = min(_TOP, len(loaded.classes)) if config.top is None else config.top
    if count > len(loaded.classes):
        raise UserError(f"top is {count}; choose from 1 to the {len(loaded.classes)} classes of the run")
    pixels = eval_pixels(loaded.spec)
    raise_all([found for file in files if file.named and isinstance(found := _read(file, pixels), str)])
    hardware = choose_hardware(config.device, 1)
    log.info("predicting on %s (%s)", hardware.device, hardware.reason)
    every, where = config.probabilities == "all", torch.device(hardware.device)
    with _drawing(overlay, loaded, overwrite=overwrite) as overlays:
        predictions, skipped = _predicted(loaded, files, pixels, overlays, config.batch_size, count, where, every=every)
        if not predictions:
            raise UserError(f"none of the {len(files)} images can be read; the first: {skipped[0]}")
        show(predictions, _SHOWN if out is not None else None)
        if overlays is not None:
            overlays.settle()
        if out is not None:
            written = as_json if Path(out).suffix == ".json" else as_csv
            write_whole(expanded(out), written(predictions, loaded.classes))
    if skipped:
        log.warning("%d of %d images were left out:\n%s", len(skipped), len(files), "\n".join(skipped))
    return predictions


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
                for (file, _), shares_C, patches in zip(batch, shares_BC, drawn, strict=True):
                    picture = None if overlays is None else str(overlays.write(file, patches))
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
