"""The verb `train`: one student by one method."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from attention_transfer.arguments import verb
from attention_transfer.data import Splits, data_slug, labelled_subset, load_data
from attention_transfer.engine.fit import fit, fit_problems, sharding_problems
from attention_transfer.engine.hardware import Device, Devices, Strategy, choose_hardware
from attention_transfer.engine.launchers import this_process
from attention_transfer.engine.loggers import LoggerName
from attention_transfer.engine.recipe import AUTO, Recipe, ResolvedRecipe, with_values
from attention_transfer.engine.seeds import seeded
from attention_transfer.engine.training import Training, TrainingResult
from attention_transfer.errors import raise_all
from attention_transfer.objectives import Supervised
from attention_transfer.training.card import model_card
from attention_transfer.training.configuration import rule_config
from attention_transfer.training.defaults import Facts, explained, resolve, start_of
from attention_transfer.training.digits import DIGITS, NAME, fits
from attention_transfer.training.inputs import inputs_for, keep_overlap, subset_lines
from attention_transfer.training.log import logging_to
from attention_transfer.training.networks import bind, make_networks, trained_network, warn_of_lost_pixels
from attention_transfer.training.run_folder import RunFolder
from attention_transfer.training.train_problems import WHERE, train_problems
from attention_transfer.training.tune import Score, Tune, tune_problems, tuned
from attention_transfer.transfer import AttentionTransfer, NetworkRule, OperandRule, Rule
from attention_transfer.transfer import preset as find_preset
from attention_transfer.vit import Pairing, Part, Pool, ViTSpec, describe, freeze, save_vit
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


@verb
def train(
    preset: str = "distill",
    *,
    teacher: str | None = None,
    pretrained: bool | str = True,
    student: str | None = None,
    pairing: Pairing | None = None,
    data: str = "digits",
    strict: bool = False,
    fraction: float = 1.0,
    shots: int | None = None,
    seed: int = 0,
    epochs: int | None = None,
    image_size: int | None = None,
    pool: Pool | None = None,
    init: str | None = None,
    init_parts: list[Part] | None = None,
    trained: list[Part] | None = None,
    rules: list[Rule] | None = None,
    tune_teacher: bool | None = None,
    tune: Tune | None = None,
    recipe: Recipe | None = None,
    device: Device = "auto",
    devices: Devices = None,
    nodes: int | None = None,
    strategy: Strategy = "ddp",
    loggers: list[LoggerName] | None = None,
    out: str | None = None,
    overwrite: bool = False,
) -> Run:
    """Train one student by one method.

    An unfinished run of the same configuration in `out` is resumed; a finished one is returned as it is.

    Args:
        preset: the method, e.g. scratch, finetune, copy, distill or gta; the verb presets lists all.
        teacher: whose attention is transferred: timm/<name>, hf/<name or folder>, torchvision/<name>, the folder of
            a run, or a weights file. Methods without a teacher take only its architecture.
        pretrained: true for the teacher's own weights, false for random ones, or a weights file.
        student: architecture of a student with random weights, in the same forms; default the teacher's own.
        pairing: how the attention of a teacher of other depth, heads, patch grid or tokens is mapped to the student's.
        data: data set, in the forms of [`load_data`][attention_transfer.data.load_data]: a folder with one for each
            class, a table, "digits", which is embedded, and others.
        strict: refuse damaged image files instead of leaving them out.
        fraction: share of the training labels to use, above 0 and at most 1, the same in each class.
        shots: labelled images of each class; takes the place of fraction.
        seed: of the labelled subset, the initial weights, the order and the augmentation.
        epochs: passes over the labelled images; takes the place of recipe.epochs.
        image_size: input pixels, height and width; default the teacher's.
        pool: what the student's head reads: token, the class token; avg, the mean of the patches, as both Attention
            Transfer and MAE have it; default as in the teacher.
        init: where the student's weights come from: random, teacher, or another network in the forms of teacher;
            default the preset's.
        init_parts: which parts come from there, the rest at random: all, embeddings, blocks, attention, qkv, qk, mlp,
            norms, pool, head; default the preset's, which is all but the head.
        trained: which parts are trained, by the same names; default the preset's, which is all.
        rules: what binds the student to the teacher; default the preset's.
        tune_teacher: fine-tune the teacher on the same images first, in a run of its own beside this one (preset
            finetune); default the preset's.
        tune: lr looks for the learning rate first, from a ninth to nine times the recipe's, by short runs in a folder
            beside this one and their validation accuracy; it takes about as long as the training itself.
        recipe: optimisation settings; what they leave open follows from what is trained.
        device: where to compute: auto, cpu, cuda or mps; auto takes GPUs where there are any.
        devices: processes on each machine, one a device; auto takes every GPU; default what the launcher says, or 1.
        nodes: machines; default what torchrun or SLURM says, or 1.
        strategy: of several devices: ddp, each holds the whole student; fsdp, each holds a share of it.
        loggers: where metrics go besides the run's files: tensorboard, wandb, mlflow; default tensorboard.
        out: folder of the run; default runs/<preset>-<data>-<labels>-seed<seed>.
        overwrite: replace another run in that folder.

    Returns:
        The folder and the summary of the run.

    Raises:
        UserError: the input is wrong; every mistake is listed, and nothing was written.
    """
    method = find_preset(preset)
    settings = recipe or Recipe(**method.recipe)  # type: ignore[arg-type]
    settings = settings if epochs is None else replace(settings, epochs=epochs)
    bound: Sequence[Rule] = method.rules if rules is None else rules
    tunes = method.tune_teacher if tune_teacher is None else tune_teacher
    labels = f"{shots}shot" if shots is not None else f"{fraction:g}"
    place = str(out or f"runs/{preset}-{data_slug(data)}-{labels}-seed{seed}")
    defaults = {name: parameter.default for name, parameter in signature(train).parameters.items()}
    defaults |= {"init": method.init, "tune_teacher": False}
    defaults |= {"init_parts": list(method.init_parts), "trained": list(method.trained)}
    config: dict[str, Any] = {
        "preset": preset,
        "teacher": teacher,
        "pretrained": pretrained,
        "student": student,
        "pairing": asdict(pairing) if pairing else None,
        "data": data,
        "strict": strict,
        "fraction": fraction,
        "shots": shots,
        "seed": seed,
        "image_size": image_size,
        "pool": pool,
        "init": init or method.init,
        "init_parts": list(method.init_parts if init_parts is None else init_parts),
        "trained": list(method.trained if trained is None else trained),
        "rules": [rule_config(rule) for rule in bound],
        "tune_teacher": False,  # done: to repeat the run is to take the teacher that is named here
        "recipe": asdict(settings),
        "device": device,
        "devices": devices,
        "nodes": nodes,
        "strategy": strategy,
        "loggers": loggers,
        "out": place,
        "overwrite": False,
    }
    raise_all([*train_problems(config, settings, bound, tunes=tunes), *tune_problems(tune, devices, nodes)])
    if data == "digits" and fits(trained_network(config)):
        own = DIGITS[preset]
        settings = with_values(settings, own.recipe)
        bound = own.rules(bound) if rules is None else bound
        config |= {"rules": [rule_config(rule) for rule in bound], "recipe": asdict(settings)}
        log.info("what the recipe leaves open is %s", NAME)
    asked, config = config, {**config, "teacher": f"{place}-teacher", "pretrained": True} if tunes else config
    if this_process() == 0:  # before the work that comes first; a rate that is looked for is known afterwards
        known = config if tune is None else {**config, "recipe": {**config["recipe"], "lr": AUTO}}
        RunFolder.checked(place, known, overwrite=overwrite, defaults=defaults)
    if tunes:
        _tune(asked, config["teacher"])
    return _train(config, settings, bound, tune=tune, overwrite=overwrite, defaults=defaults)


def _tune(config: dict[str, Any], out: str) -> None:
    """Fine-tune the teacher of a run on the same images, in a run of its own; `pool` is the student's alone."""
    log.info("fine-tuning the teacher first, in %s", out)
    same = ("teacher", "pretrained", "data", "strict", "fraction", "shots", "seed", "image_size", *WHERE)
    train("finetune", **{key: config[key] for key in same}, out=out)


@dataclass(frozen=True)
class _Built:
    """What is trained, with its recipe."""

    teacher: nn.Module | None
    student: nn.Module
    spec: ViTSpec
    transfer: AttentionTransfer
    objective: Supervised
    facts: Facts
    recipe: ResolvedRecipe


def _built(config: dict[str, Any], asked: Recipe, rules: Sequence[Rule], *, classes: int, images: int) -> _Built:
    """Networks and their objective; what the recipe leaves open follows from them."""
    with seeded(config["seed"]):
        teacher, student = make_networks(config, classes)
        spec = describe(student)
        start = start_of(config["init"], config["init_parts"], config["trained"])
        anchored = any(isinstance(rule, NetworkRule) and rule.reads_start for rule in rules)
        facts = Facts(
            start=start,
            width=spec.width,
            depth=spec.depth,
            images=images,
            anchored=anchored,
            weights=sum(p.numel() for p in student.parameters()),
            device=choose_hardware(*(config[key] for key in WHERE[:4])).device,
        )
        recipe = resolve(asked, facts, spec)
        raise_all([*recipe.problems(), *fit_problems(recipe, **{key: config[key] for key in WHERE})])
        frozen = freeze(student, ["all"], but=config["trained"]) if config["trained"] else None
        transfer = bind(teacher, student, rules, config, recipe)
        objective = Supervised(
            transfer,
            label_smoothing=recipe.label_smoothing,
            mixing=recipe.mixing,
            frozen_rows=[] if frozen is None else frozen.rows,
        )
    raise_all(sharding_problems(objective, config["strategy"]))
    return _Built(teacher, student, spec, transfer, objective, facts, recipe)


def _train(
    config: dict[str, Any],
    asked: Recipe,
    rules: Sequence[Rule],
    *,
    tune: Tune | None,
    overwrite: bool,
    defaults: dict[str, Any],
) -> Run:
    splits = load_data(config["data"], strict=config["strict"])
    subset = labelled_subset(
        splits.train.labels,
        fraction=config["fraction"],
        shots=config["shots"],
        seed=config["seed"],
        names=splits.classes,
    )
    built = _built(config, asked, rules, classes=len(splits.classes), images=len(subset))
    if tune is not None:
        open_rate = {**config, "recipe": {**asdict(built.recipe), "lr": AUTO}}
        RunFolder.checked(config["out"], open_rate, overwrite=overwrite, defaults=defaults)
        trial = partial(_trial, config, rules, splits=splits, subset=subset, overwrite=overwrite)
        built = replace(built, recipe=tuned(built.recipe, trial, name=_name(config)))
    config = {**config, "recipe": asdict(built.recipe)}
    warn_of_lost_pixels(built.student)
    with RunFolder.open(config["out"], config, overwrite=overwrite, defaults=defaults) as folder:
        if folder.finished:
            log.info("%s: done before, in %s", _name(config), folder.path)
            return Run(folder.path, folder.summary())
        if len(subset) < len(splits.train):
            folder.keep("labelled.txt", subset_lines(splits.train, subset), "labelled images")
        with logging_to(folder.path / "log.txt"):
            if reasons := explained(asked, built.recipe, built.facts):
                log.info("%s: %s", _name(config), reasons)
            summary = _trained(config, built, folder, splits, subset)
            folder.write_json("summary.json", summary)
            log.info(
                "%s: test accuracy %.1f %% after %.0f s, in %s",
                _name(config),
                100 * summary["test"]["accuracy"],
                summary["train"]["seconds"],
                folder.path,
            )
    return Run(folder.path, summary)


def _name(config: dict[str, Any]) -> str:
    return f"{config['preset']} seed {config['seed']}"


def _trained(
    config: dict[str, Any], built: _Built, folder: RunFolder, splits: Splits, subset: NDArray[np.int64]
) -> dict[str, Any]:
    """Train into a folder, write the models there, and say what came of it."""
    transfer, name = built.transfer, _name(config)
    needs_teacher = any(isinstance(rule, OperandRule) for rule in transfer.rules)
    log.debug("%s: %d labelled images, student %s", name, len(subset), built.spec)
    overlap = keep_overlap(splits, folder, data=config["data"], subset=subset)
    fitted = _fitted(config, built, folder, splits, subset, name=name, tested=True)
    summary = {
        "preset": config["preset"],
        "seed": config["seed"],
        "needs_teacher": config["teacher"] if needs_teacher else None,
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
            save_vit(built.teacher, folder.path / "teacher")  # a copied student is not complete without it
        write_whole(folder.model / "README.md", model_card(config, summary, built.spec, splits.classes))
    return summary


def _fitted(
    config: dict[str, Any],
    built: _Built,
    folder: RunFolder,
    splits: Splits,
    subset: NDArray[np.int64],
    *,
    name: str,
    tested: bool,
) -> TrainingResult:
    """Train into a folder, and let go of the networks; the test split is read only where it is asked for."""
    images = inputs_for(built.spec, splits, built.recipe, subset=subset)
    training = Training(
        objective=built.objective,
        folder=folder.path,
        recipe=built.recipe,
        train=images.train,
        validation=images.validation,
        test=images.test if tested else None,
        classes=len(splits.classes),
        prepare=images.prepare,
        seed=config["seed"],
        name=name,
        **{key: config[key] for key in WHERE},
    )
    result = fit(training)
    built.transfer.release()
    return result


def _trial(
    config: dict[str, Any],
    rules: Sequence[Rule],
    recipe: ResolvedRecipe,
    place: str,
    *,
    splits: Splits,
    subset: NDArray[np.int64],
    overwrite: bool,
) -> Score:
    """Train by a shorter recipe in a folder of its own, of which the scores are kept, and validate."""
    config = {**config, "recipe": asdict(recipe), "loggers": [], "out": f"{config['out']}-tune/{place}"}
    with RunFolder.open(config["out"], config, overwrite=overwrite) as folder:
        if not folder.finished:
            built = _built(config, recipe, rules, classes=len(splits.classes), images=len(subset))
            fitted = _fitted(config, built, folder, splits, subset, name=place, tested=False)
            folder.write_json("summary.json", {"trial": place, "validation": fitted.validation})
            shutil.rmtree(folder.checkpoints)
        scores = folder.summary()["validation"]
    return Score(scores["accuracy"], scores["cross_entropy"])
