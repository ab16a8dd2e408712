"""What the verbs that measure look at: networks, of runs or by name, and the images that they are given."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from attention_transfer.artifacts import MODEL_FILES
from attention_transfer.config.choices import SplitName
from attention_transfer.data import FileImages, Images, is_flat, load_data
from attention_transfer.data.finder import Finder
from attention_transfer.engine.hardware import choose_hardware
from attention_transfer.engine.progress import Bar
from attention_transfer.errors import UserError, raise_all
from attention_transfer.evaluation.classifier import Classifier, load_run, teacher_of
from attention_transfer.evaluation.records import ImageSequence
from attention_transfer.places import check_writable, expanded, folder_problems, out_problems
from attention_transfer.training import Device, Display, RunFolder, TrainedConfig
from attention_transfer.training.teacher_repair import REPAIRED_ON, neurons_on
from attention_transfer.ui import show_line
from attention_transfer.vit import (
    Indices,
    ViTSpec,
    add_register,
    describe,
    is_repaired,
    labels_of,
    load_vit,
    select,
)


@dataclass(frozen=True, eq=False)
class Subject:
    """A network that is looked at.

    Attributes:
        name: as it was given.
        network: what is run, in eval mode; a student that copies attention has its teacher in it.
        vit: the vision transformer in it that counts.
        spec: describes it.
        classes: class names, or their numbers; empty without a classification layer.
        named: whether the names of the classes are known.
        data: the data set of a run; `None` for other models.
    """

    name: str
    network: nn.Module
    vit: nn.Module
    spec: ViTSpec
    classes: tuple[str, ...]
    named: bool
    data: str | None


def load_subject(name: str, image_size: int | None, device: Device) -> Subject:
    """Load a run or any model that `load_vit` makes, with or without a classification layer.

    Raises:
        UserError: there is no such model, or the size of a run that copies attention is to be changed.
    """
    folder = RunFolder(Path(name).expanduser())
    config = folder.config() if folder.has("config.yaml") else None
    if isinstance(config, TrainedConfig):
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
    return _subject(name, network, vit, device, None if config is None else config.data)


def load_teacher(run: str, device: Device) -> Subject | None:
    """Load the teacher of a run, at the size at which the run used it; `None` where it had none.

    Raises:
        UserError: it is gone.
    """
    folder = RunFolder(Path(run).expanduser())
    config = folder.trained_config()
    if config.teacher is None:
        return None
    try:
        vit = teacher_of(folder, config)
    except UserError as error:
        raise UserError(f"the teacher of {run} can't be loaded: {error}") from error
    name = repaired_name(config.teacher) if is_repaired(vit) else config.teacher
    return _subject(name, vit, vit, device, None)


def _subject(name: str, network: nn.Module, vit: nn.Module, device: Device, data: str | None) -> Subject:
    spec = describe(vit)
    labels = labels_of(vit) if spec.classes else None
    network = network.to(choose_hardware(device, 1).device).eval()
    return Subject(
        name=name,
        network=network,
        vit=vit,
        spec=spec,
        classes=tuple(labels or map(str, range(spec.classes))),
        named=bool(labels),
        data=data,
    )


def load_subjects(names: Sequence[str], image_size: int | None, device: Device, layers: Indices) -> list[Subject]:
    """Load several, and check that each has the layers that are asked for.

    Raises:
        UserError: as `load_subject`, or a layer is out of range; every such network is named.
    """
    subjects = [load_subject(name, image_size, device) for name in names]
    problems = []
    for subject in subjects:
        try:
            select(layers, subject.spec.depth, "layers")
        except UserError as error:
            problems.append(f"{subject.name}: {error}")
    raise_all(problems)
    return subjects


def with_repaired(subjects: Sequence[Subject], images: ImageSequence) -> list[Subject]:
    """The networks, and after them each once more, with a test-time register; what is found is said.

    Args:
        subjects: networks, which stay as they are.
        images: at most 50 of them, at even distances, are looked at.

    Raises:
        UserError: one has no artefacts, can't be repaired, is repaired already, or copies its teacher's attention;
            every such network is named.
    """
    pictures = [images[int(i)] for i in spread(len(images), REPAIRED_ON)]
    found, problems = list(subjects), []
    for subject in subjects:
        try:
            found.append(_repaired(subject, pictures))
        except UserError as error:
            problems.append(f"{subject.name}: {error}")
    raise_all(problems)
    return found


def _repaired(subject: Subject, pictures: Sequence[Image.Image]) -> Subject:
    if isinstance(subject.network, Classifier) and subject.network.transfer.teacher is not None:
        raise UserError(
            "it copies its teacher's attention, so that there is nothing of its own to repair; leave it out"
        )
    if is_repaired(subject.vit):
        raise UserError("it is repaired already, as its run had it; leave repair out")
    network, vit = copy.deepcopy((subject.network, subject.vit))
    neurons = neurons_on(vit, pictures)
    add_register(vit, neurons)
    show_line(f"{subject.name}: {neurons}, found on {len(pictures)} images")
    return replace(subject, name=repaired_name(subject.name), network=network, vit=vit, spec=describe(vit))


def repaired_name(name: str) -> str:
    """What a network with a test-time register is called."""
    return f"{name}, repaired"


def layers_of(setting: Indices) -> Indices:
    """A choice of layers, in which "all" stands for all."""
    return None if setting == "all" else setting


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


def images_of(data: str, split: SplitName, limit: int | None) -> Images:
    """Some images of a data set, whose labels do not matter, or of a folder without classes, at even distances."""
    place = Path(data).expanduser()
    images: Images
    if is_flat(place):
        (files,) = Finder().find([place])
        images = FileImages(files)
    else:
        images = load_data(data).parts[split].images
    return images.take(spread(len(images), limit))


def spread(total: int, limit: int | None) -> NDArray[np.int64]:
    """Indices of at most `limit` images, at even distances over all of them."""
    count = total if limit is None else min(limit, total)
    return np.linspace(0, total - 1, count).round().astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Counted:
    images: ImageSequence
    bar: Bar

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        self.bar.advance()
        return self.images[index]


@contextmanager
def counted(images: ImageSequence, text: str, *, times: int = 1) -> Iterator[ImageSequence]:
    """The images, with a bar that goes on with each one that is looked at, some times each."""
    with Display.open() as display, display.bar(text, times * len(images)) as bar:
        yield _Counted(images, bar)


@dataclass(frozen=True)
class Target:
    """Where a verb writes: a JSON file, and a folder for pictures, where one was named."""

    json: Path
    folder: Path | None


def checked_out(
    out: str | None, files: Sequence[str], *, overwrite: bool, data: Sequence[str | None], models: Sequence[str]
) -> Target | None:
    """Check an `--out` before any work: a .json file, or a folder for files of these names, of which the first is JSON.

    Raises:
        UserError: it is read itself, holds such files already, or can't be written to.
    """
    if out is None:
        return None
    target = expanded(out)
    if target.suffix == ".json":
        raise_all(out_problems(out, ".json", overwrite=overwrite, data=data, models=models, names=MODEL_FILES))
        return Target(target, None)
    if target.is_file():
        raise UserError(f"{out} is a file that does not end in .json; choose a folder, or a name that does")
    problems = folder_problems(target, data=data, models=models)
    there = [target / name for name in files if (target / name).exists()]
    if there and not overwrite:
        problems.append(f"{there[0]} exists; choose another folder with --out, or replace it with --overwrite")
    raise_all(problems)
    check_writable(target)
    return Target(target / files[0], target)


def short_names(names: Sequence[str]) -> list[str]:
    """The last parts of paths, or whole names where these are not unlike."""
    last = [Path(name).name for name in names]
    return last if len(set(last)) == len(set(names)) else list(names)
