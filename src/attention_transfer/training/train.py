"""The verb `train`: one student by one method."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from attention_transfer.config.base import as_data
from attention_transfer.config.choices import AUTO
from attention_transfer.config.presets import preset as find_preset
from attention_transfer.config.recipe import Recipe, ResolvedRecipe
from attention_transfer.config.training import Train
from attention_transfer.data import SharedPixels, Splits, labelled_subset, load_data
from attention_transfer.engine.fit import fit, fit_problems, sharding_problems
from attention_transfer.engine.hardware import choose_hardware
from attention_transfer.engine.launchers import this_process
from attention_transfer.engine.seeds import seeded
from attention_transfer.engine.training import Training, TrainingResult
from attention_transfer.errors import raise_all
from attention_transfer.objectives import Supervised
from attention_transfer.places import expanded
from attention_transfer.training.asked import AskedRun, asked_of
from attention_transfer.training.card import model_card
from attention_transfer.training.defaults import Facts, explained, resolve, start_of
from attention_transfer.training.inputs import inputs_for, keep_overlap, subset_lines
from attention_transfer.training.log import logging_to
from attention_transfer.training.networks import bind, make_networks, warn_of_lost_pixels
from attention_transfer.training.run_folder import RunFolder
from attention_transfer.training.teacher_repair import RECORD, TeacherRepair, repair_teacher
from attention_transfer.training.tune import TrialScore, tuned
from attention_transfer.transfer import NetworkRule, OperandRule
from attention_transfer.vit import (
    ViTSpec,
    check_repairable,
    describe,
    freeze,
    is_repaired,
    load_vit,
    remove_register,
    save_vit,
)
from attention_transfer.writing import write_whole

log = logging.getLogger("attention_transfer")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        summary: the content of its `summary.json`.
    """

    path: Path
    summary: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Accuracy on the test split, in [0, 1]."""
        return float(self.summary["test"]["accuracy"])


def train_student(config: Train, shared: SharedPixels | None = None) -> Run:
    """The verb `train`.

    Args:
        config: what is asked for.
        shared: where the runs of a comparison keep decoded image files for each other.
    """
    asked = asked_of(config)
    method, tunes = find_preset(config.preset), asked.tune_teacher
    # Repeating a run neither fine-tunes its teacher again, which is then the one named, nor replaces a folder.
    run = replace(asked, tune_teacher=False, overwrite=False)
    if tunes:
        run = replace(run, teacher=f"{run.out}-teacher", pretrained=True)
    plan = AskedRun(run, config.overwrite, method, shared)
    if this_process() == 0:  # before the work that comes first; a rate that is looked for is known afterwards
        plan.check(plan.recipe if config.tune is None else replace(plan.recipe, lr=AUTO))
    if tunes:
        _tune_teacher(asked, str(run.teacher))
    return _train(plan)


def validate_student(config: Train, shared: SharedPixels | None = None) -> TrialScore:
    """Train as `train` does, but for a search: the test split is not read, and no model is kept.

    Args:
        config: what is asked for.
        shared: where the runs of a search keep decoded image files for each other.

    Raises:
        UserError: as for `train`.
    """
    asked = replace(asked_of(config), tune_teacher=False, overwrite=False, loggers=[])
    plan = AskedRun(asked, False, find_preset(config.preset), shared)
    splits = load_data(asked.data, strict=asked.strict)
    subset = labelled_subset(
        splits.train.labels, fraction=asked.fraction, shots=asked.shots, seed=asked.seed, names=splits.classes
    )
    recipe = _built(plan, splits, subset).recipe
    return _scored(plan, recipe, Path(str(asked.out)).name, splits=splits, subset=subset)


def _tune_teacher(config: Train, out: str) -> None:
    """Fine-tune the teacher of a run on the same images, in a run of its own; `pool` is the student's alone."""
    if config.repair:  # which comes after the tuning, and would be refused only then
        check_repairable(load_vit(str(config.teacher), pretrained=False))
    log.debug("fine-tuning the teacher first, in %s", out)
    tuned = Train(
        "finetune",
        teacher=config.teacher,
        pretrained=config.pretrained,
        data=config.data,
        strict=config.strict,
        fraction=config.fraction,
        shots=config.shots,
        seed=config.seed,
        image_size=config.image_size,
        **config.place,
        out=out,
    )
    train_student(tuned)


@dataclass(frozen=True)
class _Built:
    """What is trained, with its recipe, and what was repaired in the teacher, where that was asked for."""

    teacher: nn.Module | None
    repair: TeacherRepair | None
    student: nn.Module
    spec: ViTSpec
    objective: Supervised
    facts: Facts
    recipe: ResolvedRecipe


def _built(plan: AskedRun, splits: Splits, subset: NDArray[np.int64]) -> _Built:
    """Networks and their objective; what the recipe leaves open follows from them."""
    config, rules = plan.config, plan.config.rules or []
    init, parts, trained = str(config.init), config.init_parts or [], config.trained or []
    with seeded(config.seed):
        teacher, student = make_networks(config, len(splits.classes))
        repair = None
        if teacher is not None and config.repair:  # after the student is made, which starts as it would without
            begun = None if plan.overwrite else expanded(str(config.out))
            repair = repair_teacher(teacher, splits.train.images.take(subset), begun)
        spec = describe(student)
        facts = Facts(
            start=start_of(init, parts, trained),
            width=spec.width,
            depth=spec.depth,
            images=len(subset),
            anchored=any(isinstance(rule, NetworkRule) and rule.reads_start for rule in rules),
            weights=sum(p.numel() for p in student.parameters()),
            device=choose_hardware(config.device, config.devices, config.nodes, config.strategy).device,
        )
        recipe = resolve(plan.recipe, facts, spec)
        raise_all([*recipe.problems(), *fit_problems(recipe, **config.place)])
        frozen = freeze(student, ["all"], but=trained) if trained else None
        objective = Supervised(
            bind(teacher, student, rules, config, recipe),
            label_smoothing=recipe.label_smoothing,
            mixing=recipe.mixing,
            frozen_rows=[] if frozen is None else frozen.rows,
        )
    raise_all(sharding_problems(objective, config.strategy))
    return _Built(teacher, repair, student, spec, objective, facts, recipe)


def _train(plan: AskedRun) -> Run:
    config, name = plan.config, plan.name
    splits = load_data(config.data, strict=config.strict)
    subset = labelled_subset(
        splits.train.labels, fraction=config.fraction, shots=config.shots, seed=config.seed, names=splits.classes
    )
    built = _built(plan, splits, subset)
    if config.tune is not None:
        plan.check(Recipe(**{**as_data(built.recipe), "lr": AUTO}))
        trial = partial(_trial, plan, splits=splits, subset=subset)
        built = replace(built, recipe=tuned(built.recipe, trial, name=name))
    data = plan.data(built.recipe)
    warn_of_lost_pixels(built.student)
    with RunFolder.open(str(config.out), data, overwrite=plan.overwrite, defaults=plan.before) as folder:
        if folder.finished:
            log.info("%s: done before, in %s", name, folder.path)
            return Run(folder.path, folder.summary())
        if len(subset) < len(splits.train):
            folder.keep("labelled.txt", subset_lines(splits.train, subset), "labelled images")
        if built.repair is not None:
            folder.keep(RECORD, built.repair.text, "register neurons of the teacher")
        with logging_to(folder.path / "log.txt"):
            if built.repair is not None:
                log.info("%s: repair of the teacher: %s", name, built.repair)
            if reasons := explained(plan.recipe, built.recipe, built.facts):
                log.info("%s: %s", name, reasons)
            summary = _trained(plan, built, folder, splits, subset)
            folder.write_json("summary.json", summary)
            accuracy, seconds = 100 * summary["test"]["accuracy"], summary["train"]["seconds"]
            log.info("%s: test accuracy %.1f %% after %.0f s, in %s", name, accuracy, seconds, folder.path)
    return Run(folder.path, summary)


def _trained(
    plan: AskedRun, built: _Built, folder: RunFolder, splits: Splits, subset: NDArray[np.int64]
) -> dict[str, Any]:
    """Train into a folder, write the models there, and say what came of it."""
    config, transfer = plan.config, built.objective.transfer
    needs_teacher = any(isinstance(rule, OperandRule) for rule in transfer.rules)
    log.debug("%s: %d labelled images, student %s", plan.name, len(subset), built.spec)
    overlap = keep_overlap(splits, folder, data=config.data, subset=subset)
    fitted = _fitted(plan, built, folder, splits, subset, name=plan.name, tested=True)
    summary = {
        "preset": config.preset,
        "seed": config.seed,
        "needs_teacher": config.teacher if needs_teacher else None,
        "head_pairs": None if transfer.head_pairs is None else transfer.head_pairs.pairs.tolist(),
        "skipped": len(splits.skipped),
        "overlap": overlap,
        "train": {"images": len(subset), "steps": fitted.steps, "seconds": fitted.seconds},
        "best_epoch": fitted.best_epoch,
        "validation": {"images": len(splits.validation.labels), **fitted.validation},
        "test": {"images": len(splits.test.labels), **fitted.test},
    }
    if this_process() == 0:
        save_vit(built.student, folder.model, labels=list(splits.classes))
        if built.teacher is not None and needs_teacher:
            if is_repaired(built.teacher):
                remove_register(built.teacher)  # no format has a place for it; the run's record says how to repair it
            save_vit(built.teacher, folder.path / "teacher")  # a copied student is not complete without it
        repair = None if built.repair is None else str(built.repair)
        card = model_card(folder.trained_config(), summary, built.spec, splits.classes, repair=repair)
        write_whole(folder.model / "README.md", card)
    return summary


def _fitted(
    plan: AskedRun,
    built: _Built,
    folder: RunFolder,
    splits: Splits,
    subset: NDArray[np.int64],
    *,
    name: str,
    tested: bool,
) -> TrainingResult:
    """Train into a folder, and let go of the networks; the test split is read only where it is asked for."""
    config = plan.config
    images = inputs_for(built.spec, splits, built.recipe, subset=subset, shared=plan.shared)
    training = Training(
        objective=built.objective,
        folder=folder.path,
        recipe=built.recipe,
        train=images.train,
        validation=images.validation,
        test=images.test if tested else None,
        classes=len(splits.classes),
        prepare=images.prepare,
        seed=config.seed,
        name=name,
        **config.place,
    )
    result = fit(training)
    built.objective.transfer.release()
    return result


def _trial(
    plan: AskedRun, recipe: ResolvedRecipe, place: str, *, splits: Splits, subset: NDArray[np.int64]
) -> TrialScore:
    """Train by a shorter recipe in a folder of its own, of which the scores are kept, and validate."""
    config = replace(plan.config, recipe=recipe, loggers=[], out=f"{plan.config.out}-tune/{place}")
    return _scored(replace(plan, config=config), recipe, place, splits=splits, subset=subset)


def _scored(
    plan: AskedRun, recipe: ResolvedRecipe, name: str, *, splits: Splits, subset: NDArray[np.int64]
) -> TrialScore:
    """Train by a recipe into the plan's folder, of which the scores are kept, and validate."""
    with RunFolder.open(str(plan.config.out), plan.data(recipe), overwrite=plan.overwrite) as folder:
        if not folder.finished:
            built = _built(plan, splits, subset)
            fitted = _fitted(plan, built, folder, splits, subset, name=name, tested=False)
            folder.write_json("summary.json", {"trial": name, "validation": fitted.validation})
            shutil.rmtree(folder.checkpoints)
        scores = folder.summary()["validation"]
    return TrialScore(scores["accuracy"], scores["cross_entropy"])
