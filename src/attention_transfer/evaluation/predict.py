"""The verb `predict`: classes of image files by a trained run."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from attention_transfer.data import Transform, eval_transform, read_image
from attention_transfer.errors import UserError, raise_all
from attention_transfer.evaluation.network import load_run
from attention_transfer.training import console, write_whole


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, most probable first.

    Attributes:
        image: its path.
        classes: class names.
        probabilities: their softmax probabilities, in [0, 1].
    """

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(
    run: str,
    images: list[str],
    *,
    top: int = 3,
    batch_size: int = 64,
    out: str | None = None,
    overwrite: bool = False,
) -> list[Prediction]:
    """Classify image files with a trained run.

    Images are turned upright, and brought to the channels, size and normalisation of the model.

    Args:
        run: folder of a finished run of `train`.
        images: image files.
        top: how many classes to give for each.
        batch_size: images a forward pass.
        out: file for the predictions, .csv or .json; default shows a table only.
        overwrite: replace that file.

    Returns:
        A prediction for each image, in the order given.

    Raises:
        UserError: the run can't be loaded, or images can't be read (each is named); nothing was written.
    """
    target = _target(out, overwrite)
    loaded = load_run(run)
    if not 1 <= top <= len(loaded.classes):
        raise UserError(f"top is {top}; choose from 1 to the {len(loaded.classes)} classes of the run")
    if not images:
        raise UserError("no images given; name some files")
    inputs = _read(images, eval_transform(loaded.spec))
    with torch.inference_mode():
        batches = [loaded.network(batch).softmax(dim=-1) for batch in torch.stack(inputs).split(batch_size)]
    best = torch.cat(batches).topk(top, dim=-1)
    predictions = [
        Prediction(path, tuple(loaded.classes[i] for i in indices), tuple(round(p, 6) for p in probabilities))
        for path, indices, probabilities in zip(images, best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    _show(predictions)
    if target is not None:
        write_whole(target, _as_json(predictions) if target.suffix == ".json" else _as_csv(predictions))
    return predictions


def _read(paths: list[str], transform: Transform) -> list[torch.Tensor]:
    tensors, problems = [], []
    for path in paths:
        try:
            tensors.append(transform(read_image(path)))
        except UserError as error:
            problems.append(str(error))
    raise_all(problems)
    return tensors


def _target(out: str | None, overwrite: bool) -> Path | None:
    if out is None:
        return None
    target = Path(out)
    if target.suffix not in (".csv", ".json"):
        raise UserError(f"{out} ends in neither .csv nor .json; choose one of the two")
    if target.exists() and not overwrite:
        raise UserError(f"{out} exists; choose another name or replace it with --overwrite")
    if not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent} to write {target.name} in; make it first")
    return target


def _show(predictions: list[Prediction]) -> None:
    table = Table("image", *[f"{rank + 1}." for rank in range(len(predictions[0].classes))])
    for prediction in predictions:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        table.add_row(prediction.image, *[f"{name}  {100 * probability:.1f} %" for name, probability in pairs])
    console.print(table)


def _as_json(predictions: list[Prediction]) -> str:
    rows = [{"image": p.image, "classes": list(p.classes), "probabilities": list(p.probabilities)} for p in predictions]
    return json.dumps(rows, indent=2) + "\n"


def _as_csv(predictions: list[Prediction]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "rank", "class", "probability"])
    for p in predictions:
        for rank, (name, probability) in enumerate(zip(p.classes, p.probabilities, strict=True), start=1):
            writer.writerow([p.image, rank, name, probability])
    return text.getvalue()
