"""What the verbs that measure look at: networks, of runs or by name, and the images that they are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from attention_transfer.engine.hardware import choose_hardware
from attention_transfer.errors import UserError
from attention_transfer.evaluation.classifier import load_run
from attention_transfer.evaluation.records import ImageSequence
from attention_transfer.training import Device, Display, RunFolder
from attention_transfer.vit import ViTSpec, describe, labels_of, load_vit


@dataclass(frozen=True, eq=False)
class Subject:
    """A network that is looked at.

    Attributes:
        name: as it was given.
        network: what is run, in eval mode; a student that copies attention has its teacher in it.
        vit: the vision transformer in it that counts.
        spec: describes it.
        classes: class names, or their numbers; empty without a classification layer.
        data: the data set of a run; `None` for other models.
    """

    name: str
    network: nn.Module
    vit: nn.Module
    spec: ViTSpec
    classes: tuple[str, ...]
    data: str | None


def load_subject(name: str, image_size: int | None, device: Device) -> Subject:
    """Load a run or any model that `load_vit` makes, with or without a classification layer.

    Raises:
        UserError: there is no such model, or the size of a run that copies attention is to be changed.
    """
    folder = RunFolder(Path(name).expanduser())
    config: dict[str, Any] = folder.config() if folder.has("config.yaml") else {}
    if "preset" in config:
        run = load_run(folder.path)
        copies = run.network.transfer.teacher is not None
        if copies and image_size not in (None, *{*run.spec.image_size}):
            raise UserError(f"{name} copies its teacher's attention at its own size; leave image_size out")
        if image_size is None or copies:
            network: nn.Module = run.network
            vit = run.network.student
        else:
            network = vit = load_vit(str(folder.path), image_size=image_size)
    else:
        network = vit = load_vit(name, image_size=image_size)
    spec = describe(vit)
    classes = tuple(labels_of(vit) or map(str, range(spec.classes))) if spec.classes else ()
    return Subject(name, network.to(choose_hardware(device, 1).device).eval(), vit, spec, classes, config.get("data"))


def data_of(subjects: Sequence[Subject], data: str | None) -> str:
    """The data set to look at: the one that is named, or else that of the runs.

    Raises:
        UserError: none is named, and the models are no runs, or runs of several data sets.
    """
    if data is not None:
        return data
    known = {subject.data for subject in subjects if subject.data is not None}
    if len(known) == 1:
        return known.pop()
    why = f"the runs have several data sets ({', '.join(sorted(known))})" if known else "the models are no runs"
    raise UserError(f"{why}, so that nothing says which images to take; name them with --data")


def spread(total: int, limit: int | None) -> NDArray[np.int64]:
    """Indices of at most `limit` images, at even distances over all of them."""
    count = total if limit is None else min(limit, total)
    return np.linspace(0, total - 1, count).round().astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Counted:
    images: ImageSequence
    bar: Any

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        self.bar.advance()
        return self.images[index]


@contextmanager
def counted(images: ImageSequence, text: str) -> Iterator[ImageSequence]:
    """The images, with a bar that goes on with each one that is looked at."""
    with Display.open() as display, display.bar(text, len(images)) as bar:
        yield _Counted(images, bar)


def short_names(names: Sequence[str]) -> list[str]:
    """The last parts of paths, or whole names where these are not unlike."""
    last = [Path(name).name for name in names]
    return last if len(set(last)) == len(set(names)) else list(names)
