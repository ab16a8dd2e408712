"""The verb `evaluate`: how good classifiers or frozen features are, and how far two of them differ.

Shapes: N images, C classes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from attention_transfer.config.choices import FrozenProbe, SplitName
from attention_transfer.config.verbs import Evaluate
from attention_transfer.data import Split, Splits, eval_pixels, load_data
from attention_transfer.data.splits import first_five
from attention_transfer.errors import UserError, raise_all
from attention_transfer.evaluation.frozen import frozen_features, knn, linear_probe
from attention_transfer.evaluation.intervals import Estimate, PairedDifference, paired_difference
from attention_transfer.evaluation.metrics import ClassificationScores, ImageScores, classification, image_scores
from attention_transfer.evaluation.records import input_batches
from attention_transfer.evaluation.subjects import (
    Subject,
    checked_out,
    counted,
    data_of,
    load_subject,
    short_names,
    spread,
)
from attention_transfer.ui import console, show_line
from attention_transfer.viewing import Bin, reliability_diagram, save
from attention_transfer.vit import logits_of
from attention_transfer.writing import write_whole

log = logging.getLogger("attention_transfer")

_FILES = ("evaluation.json", "reliability.png")
_SHOWN = 5  # confusions

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ModelScores:
    """How good one model is.

    Attributes:
        name: as it was named.
        classes: class names, in the order of `scores.per_class` and `scores.confusion`.
        scores: its figures.
    """

    name: str
    classes: tuple[str, ...]
    scores: ClassificationScores


@dataclass(frozen=True)
class ModelDifference:
    """How far two models differ on the same images, first minus second.

    Attributes:
        models: their names.
        top1: of accuracy.
        nll: of the negative log-likelihood, in nats.
        brier: of the Brier score.
    """

    models: tuple[str, str]
    top1: PairedDifference
    nll: PairedDifference
    brier: PairedDifference


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found out.

    Attributes:
        data: the data set.
        split: which of its images.
        images: how many.
        frozen: how features were judged; `None` for classification layers.
        models: in the order given.
        differences: of every two models, in order.
    """

    data: str
    split: SplitName
    images: int
    frozen: FrozenProbe | None
    models: tuple[ModelScores, ...]
    differences: tuple[ModelDifference, ...]


def evaluate_models(config: Evaluate) -> Evaluation:
    """The verb `evaluate`."""
    names = config.models
    target = checked_out(config.out, _FILES, overwrite=config.overwrite, data=[config.data], models=names)
    subjects = [load_subject(name, config.image_size, config.device) for name in names]
    if config.frozen is None:
        raise_all(
            [
                f"{subject.name} has no classification layer; judge its features with --frozen knn or linear"
                for subject in subjects
                if not subject.classes
            ]
        )
    data = data_of(subjects, config.data)
    splits = load_data(data)
    split = splits.parts[config.split]
    split = split.take(spread(len(split), config.limit))
    if config.frozen is not None and config.split == "train":
        raise UserError("frozen features are judged by the training images' labels; choose another split")
    places = _places(subjects, splits, config.frozen)
    models, each = [], []
    for subject, (classes, place) in zip(subjects, places, strict=True):
        logits_NC = _logits(subject, split, splits, config)
        labels_N = place[split.labels]
        models.append(ModelScores(subject.name, classes, classification(logits_NC, labels_N, bins=config.bins)))
        each.append(image_scores(logits_NC, labels_N))
    differences = tuple(
        _difference((names[i], names[j]), each[i], each[j]) for i, j in combinations(range(len(names)), 2)
    )
    result = Evaluation(data, config.split, len(split), config.frozen, tuple(models), differences)
    _show(result)
    if target is not None:
        write_whole(target.json, json.dumps(asdict(result), indent=2) + "\n")
        if target.folder is not None:
            save(reliability_diagram(_bins(result)), target.folder / _FILES[1])
    return result


def _places(
    subjects: Sequence[Subject], splits: Splits, frozen: FrozenProbe | None
) -> list[tuple[tuple[str, ...], NDArray[np.int64]]]:
    """For each model its classes, and where in them each class of the data set is."""
    own = np.arange(len(splits.classes))
    found, problems = [], []
    for subject in subjects:
        if frozen is not None:
            found.append((splits.classes, own))
        elif missing := [name for name in splits.classes if name not in subject.classes]:
            if subject.named or len(subject.classes) != len(splits.classes):
                names = "" if subject.named else " without names"
                problems.append(
                    f"{subject.name} has {len(subject.classes)} classes{names}, among which {first_five(missing)} of "
                    f"{splits.name} are not; choose a model or a data set with the same classes"
                )
            else:
                found.append((splits.classes, own))
        else:
            found.append((subject.classes, np.array([subject.classes.index(name) for name in splits.classes])))
    raise_all(problems)
    for subject in subjects:
        if frozen is None and not subject.named:
            log.warning(
                "%s has %d classes without names: they are taken for those of %s, in order",
                subject.name,
                len(subject.classes),
                splits.name,
            )
    return found


def _logits(subject: Subject, split: Split, splits: Splits, config: Evaluate) -> Floats:
    """Logits, or logarithms of class probabilities, (N, C)."""
    if config.frozen is not None:
        return _by_features(subject, split, splits, config.frozen, config.batch_size)
    found = []
    with counted(split.images, f"evaluating {subject.name}") as images, torch.inference_mode():
        for *_, inputs in input_batches(
            subject.network, subject.spec, images, eval_pixels(subject.spec), config.batch_size
        ):
            found.append(logits_of(subject.network(inputs)).double().cpu())
    logits_NC: Floats = torch.cat(found).numpy()
    if not np.isfinite(logits_NC).all():
        raise UserError(f"{subject.name} gives logits that are not finite; leave it out")
    return logits_NC


def _by_features(subject: Subject, split: Split, splits: Splits, frozen: FrozenProbe, batch: int) -> Floats:
    """Logarithms of the class probabilities that neighbours or a linear probe give, (N, C)."""

    def features(part: Split, what: str) -> torch.Tensor:
        with counted(part.images, f"{what} features of {subject.name}") as images:
            return frozen_features(subject.network, images, vit=subject.vit, batch=batch)

    classes, train = len(splits.classes), features(splits.train, "training")
    if frozen == "knn":
        votes = knn(train, splits.train.labels, features(split, "test"), classes=classes)
        return votes.double().clamp_min(torch.finfo(torch.float32).tiny).log().numpy()
    validation = features(splits.validation, "validation")
    probe = linear_probe(train, splits.train.labels, validation, splits.validation.labels, classes=classes)
    return probe.log_probabilities(features(split, "test"))


def _difference(names: tuple[str, str], a: ImageScores, b: ImageScores) -> ModelDifference:
    return ModelDifference(
        names, *(paired_difference(getattr(a, of), getattr(b, of)) for of in ("top1", "nll", "brier"))
    )


def _bins(result: Evaluation) -> dict[str, list[Bin]]:
    """What the reliability diagram shows, by the title of each panel."""
    names = short_names([model.name for model in result.models])
    return {
        f"{name}\nECE {100 * model.scores.ece:.1f} %": [
            Bin(b.low, b.high, b.images / result.images, b.confidence, b.accuracy)
            for b in model.scores.reliability
            if b.confidence is not None and b.accuracy is not None
        ]
        for name, model in zip(names, result.models, strict=True)
    }


def _show(result: Evaluation) -> None:
    names = short_names([model.name for model in result.models])
    how = {None: "", "knn": ", features by nearest neighbours", "linear": ", features by a linear probe"}
    show_line(f"{result.images} {result.split} images of {result.data}{how[result.frozen]}")
    table = Table()
    table.add_column("", overflow="fold")
    for heading in ("top-1, %\n(95 %)", "top-5, %\n(95 %)", "mean per\nclass, %", "NLL,\nnats", "Brier", "ECE, %"):
        table.add_column(heading, justify="right")
    for name, model in zip(names, result.models, strict=True):
        scores = model.scores
        table.add_row(
            name,
            _with_interval(scores.top1, 100, 1),
            "–" if scores.top5 is None else _with_interval(scores.top5, 100, 1),
            f"{100 * scores.mean_per_class:.1f}",
            _with_interval(scores.nll, 1, 3),
            _with_interval(scores.brier, 1, 3),
            f"{100 * scores.ece:.1f}",
        )
    console.print(table)
    if result.differences:
        console.print(_differences(result, dict(zip((m.name for m in result.models), names, strict=True))))
    for name, model in zip(names, result.models, strict=True):
        if confused := _confusions(model):
            show_line(f"{name} confuses most often: {'; '.join(confused)}")


def _differences(result: Evaluation, names: dict[str, str]) -> Table:
    table = Table(title="differences on the same images, first minus second", title_justify="left")
    table.add_column("", overflow="fold")
    for heading in ("top-1, points\n(95 %)", "p", "NLL,\nnats", "p"):
        table.add_column(heading, justify="right")
    for pair in result.differences:
        first, second = (names[name] for name in pair.models)
        table.add_row(
            f"{first} − {second}",
            _with_interval(pair.top1.difference, 100, 1, sign="+"),
            f"{pair.top1.p:.2g}",
            _with_interval(pair.nll.difference, 1, 3, sign="+"),
            f"{pair.nll.p:.2g}",
        )
    return table


def _confusions(model: ModelScores) -> list[str]:
    """The most frequent mistakes, in words."""
    counts = np.array(model.scores.confusion)
    np.fill_diagonal(counts, 0)
    largest = np.argsort(-counts, axis=None, kind="stable")[:_SHOWN]
    pairs = [(int(right), int(taken)) for right, taken in zip(*np.unravel_index(largest, counts.shape), strict=True)]
    return [
        f"{model.classes[right]} with {model.classes[taken]} "
        f"({counts[right, taken]} of {sum(model.scores.confusion[right])})"
        for right, taken in pairs
        if counts[right, taken]
    ]


def _with_interval(of: Estimate, scale: float, digits: int, sign: str = "") -> str:
    value = f"{scale * of.value:{sign}.{digits}f}"
    if of.low is None or of.high is None:
        return value
    return f"{value}\n({scale * of.low:{sign}.{digits}f} to {scale * of.high:{sign}.{digits}f})"
