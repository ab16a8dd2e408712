"""The predictions of `predict` as a table, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from attention_transfer.ui import console

_LONG = 40  # characters of a path that a table has room for


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, most probable first.

    Attributes:
        image: its path.
        classes: class names.
        probabilities: their softmax probabilities, in [0, 1].
        every: the probability of every class, in the model's order, if all were asked for.
        overlay: the picture of where the network looked, if one was asked for.
    """

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    every: tuple[float, ...] | None = None
    overlay: str | None = None


def show(predictions: Sequence[Prediction], most: int | None) -> None:
    """Show a row an image, for the first `most` images or all. A long common folder is named once, above the table."""
    folder = _folder_of([prediction.image for prediction in predictions[:most]])
    if folder:
        console.print(f"in {folder}", soft_wrap=True)
    table = Table()
    table.add_column("image", overflow="fold")  # paths end in what tells them apart
    for rank in range(len(predictions[0].classes)):
        table.add_column(f"{rank + 1}.")
    for prediction in predictions[:most]:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        shares = [f"{name}  {100 * probability:.1f} %" for name, probability in pairs]
        image = os.path.relpath(prediction.image, folder) if folder else prediction.image
        table.add_row(image, *shares)
    console.print(table)
    if most is not None and len(predictions) > most:
        console.print(f"and {len(predictions) - most:,} more")


def _folder_of(images: Sequence[str]) -> str:
    """The common folder of all images, if a path is so long that a narrow table would fold it."""
    folders = {str(Path(image).parent) for image in images}
    if max(map(len, images)) <= _LONG or len({Path(folder).is_absolute() for folder in folders}) > 1:
        return ""
    return os.path.commonpath(folders)


def as_json(predictions: Sequence[Prediction], classes: Sequence[str]) -> str:
    """An object for each image, with all probabilities by class under `every` if all were asked for."""
    rows = [
        {key: value for key, value in asdict(prediction).items() if value is not None} for prediction in predictions
    ]
    for row in rows:
        if "every" in row:
            row["every"] = dict(zip(classes, row["every"], strict=True))
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def as_csv(predictions: Sequence[Prediction], classes: Sequence[str]) -> str:
    """A row for each image and rank; or, if all probabilities were asked for, a row an image and a column a class."""
    text = io.StringIO()
    writer = csv.writer(text)
    if predictions[0].every is None:
        writer.writerow(["image", "rank", "class", "probability"])
        for p in predictions:
            for rank, (name, probability) in enumerate(zip(p.classes, p.probabilities, strict=True), start=1):
                writer.writerow([p.image, rank, name, probability])
    else:
        writer.writerow(["image", "class", *(f"probability of {name}" for name in classes)])
        writer.writerows([p.image, p.classes[0], *(p.every or ())] for p in predictions)
    return text.getvalue()
