"""The verb `evaluate`: how good classifiers or frozen features are, and how far two of them differ.

Shapes: N images, C classes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from attention_transfer.config.choices import FrozenProbe
from attention_transfer.config.evaluate import Evaluate
from attention_transfer.data import Split, Splits, eval_pixels, load_data
from attention_transfer.data.splits import first_five
from attention_transfer.errors import UserError, raise_all
from attention_transfer.evaluation.evaluate_tables import show
from attention_transfer.evaluation.evaluation_result import Evaluation, ModelDifference, ModelScores
from attention_transfer.evaluation.frozen import frozen_features, linear_probe
from attention_transfer.evaluation.intervals import paired_difference
from attention_transfer.evaluation.metrics import ImageScores, classification, image_scores
from attention_transfer.evaluation.records import input_batches
from attention_transfer.evaluation.shift import Judged, measure_shifts
from attention_transfer.evaluation.shifted_images import shifted_sets
from attention_transfer.evaluation.subjects import (
    Subject,
    checked_out,
    counted,
    data_of,
    load_subject,
    short_names,
    spread,
    with_repaired,
)
from attention_transfer.evaluation.throughput import ForwardCost, forward_cost
from attention_transfer.training.neighbours import knn
from attention_transfer.viewing import Bin, reliability_diagram, save
from attention_transfer.vit import logits_of
from attention_transfer.writing import write_whole

log = logging.getLogger("attention_transfer")

_TIMED = 8  # images a forward pass, of which time is taken
_FILES = ("evaluation.json", "reliability.png")
Floats = NDArray[np.float64]


def evaluate_models(config: Evaluate) -> Evaluation:
    """The verb `evaluate`."""
    names = config.models
    shifts = [config.shift] if isinstance(config.shift, str) else config.shift or []
    target = checked_out(config.out, _FILES, overwrite=config.overwrite, data=[config.data, *shifts], models=names)
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
    if config.repair:
        subjects = with_repaired(subjects, splits.train.images)
    places = _places(subjects, splits, config.frozen)
    sets = [
        replace(each, split=each.split.take(spread(len(each.split), config.limit)))
        for each in shifted_sets(shifts, splits, config.split)
    ]
    judged = [
        Judged(subject.name, place, run(split), run)
        for subject, (_, place) in zip(subjects, places, strict=True)
        for run in [_remembered(_runner(subject, splits, config))]
    ]
    costs: list[ForwardCost | None] = [
        forward_cost(s.network, s.spec, batch=min(_TIMED, config.batch_size)) for s in subjects
    ]
    if config.ensemble:
        judged.append(_ensemble(judged, [classes for classes, _ in places]))
        places, costs = [*places, places[0]], [*costs, None]
    models, each = [], []
    for model, (classes, place), cost in zip(judged, places, costs, strict=True):
        scores = classification(model.logits, place[split.labels], bins=config.bins)
        models.append(ModelScores(model.name, classes, scores, cost))
        each.append(image_scores(model.logits, place[split.labels]))
    found = measure_shifts(judged, split.labels, sets) if sets else None
    differences = _differences([model.name for model in models], each)
    result = Evaluation(data, config.split, len(split), config.frozen, tuple(models), differences, found)
    show(result)
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


def _ensemble(models: Sequence[Judged], classes: Sequence[tuple[str, ...]]) -> Judged:
    """All models as one, whose logits are the logarithms of their mean class probabilities.

    Raises:
        UserError: they do not have the same classes in the same order.
    """
    if len({*classes}) > 1:
        raise UserError("the models have other classes, or in another order, so that no ensemble can be made of them")

    def mean(logits: Sequence[Floats]) -> Floats:
        averaged: Floats = logsumexp([log_softmax(each, axis=1) for each in logits], axis=0) - np.log(len(logits))
        return averaged

    name = f"ensemble of {len(models)}"
    together = mean([model.logits for model in models])
    return Judged(name, models[0].place, together, lambda split: mean([model.run(split) for model in models]))


def _remembered(run: Callable[[Split], Floats]) -> Callable[[Split], Floats]:
    """The same for the split that it ran last, so that an ensemble does not run its members again."""
    last: list[tuple[Split, Floats]] = []

    def once(split: Split) -> Floats:
        if not (last and last[0][0] is split):
            last[:] = [(split, run(split))]
        return last[0][1]

    return once


def _runner(subject: Subject, splits: Splits, config: Evaluate) -> Callable[[Split], Floats]:
    """What gives a split's logits, or logarithms of class probabilities, (N, C)."""
    if config.frozen is not None:
        return _feature_runner(subject, splits, config.frozen, config.batch_size)

    def run(split: Split) -> Floats:
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

    return run


def _feature_runner(subject: Subject, splits: Splits, frozen: FrozenProbe, batch: int) -> Callable[[Split], Floats]:
    """As `_runner`, by neighbours among the training features, or by a linear probe that was trained on these."""

    def features(part: Split, what: str) -> torch.Tensor:
        with counted(part.images, f"{what} features of {subject.name}") as images:
            return frozen_features(subject.network, images, vit=subject.vit, batch=batch)

    classes, train = len(splits.classes), features(splits.train, "training")
    if frozen == "knn":

        def vote(split: Split) -> Floats:
            votes = knn(train, splits.train.labels, features(split, "test"), classes=classes)
            return votes.double().clamp_min(torch.finfo(torch.float32).tiny).log().numpy()

        return vote
    validation = features(splits.validation, "validation")
    probe = linear_probe(train, splits.train.labels, validation, splits.validation.labels, classes=classes)
    return lambda split: probe.log_probabilities(features(split, "test"))


def _differences(names: Sequence[str], each: Sequence[ImageScores]) -> tuple[ModelDifference, ...]:
    """Of every two models, in order."""
    return tuple(
        ModelDifference(
            (names[i], names[j]),
            *(paired_difference(getattr(each[i], of), getattr(each[j], of)) for of in ("top1", "nll", "brier")),
        )
        for i, j in combinations(range(len(names)), 2)
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
