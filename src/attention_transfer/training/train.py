"""The verb `train`: one student by one method."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from attention_transfer.data import check_subset, eval_transform, labelled_subset, load_data, train_transform
from attention_transfer.errors import raise_all
from attention_transfer.training.configuration import rule_config
from attention_transfer.training.engine import fit
from attention_transfer.training.log import logging_to
from attention_transfer.training.objective import Supervised
from attention_transfer.training.recipe import Recipe
from attention_transfer.training.run_folder import RunFolder
from attention_transfer.training.seeds import seeded
from attention_transfer.transfer import AttentionTransfer, Init, OperandRule, Rule
from attention_transfer.transfer import preset as find_preset
from attention_transfer.vit import (
    Pairing,
    check_transfer,
    describe,
    load_vit,
    save_vit,
    set_drop_path,
    student_from,
    student_like,
)

log = logging.getLogger("attention_transfer")

DEFAULT_ARCHITECTURE = "builtin/vit_digits"


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


def train(
    preset: str = "distill",
    *,
    teacher: str | None = None,
    pretrained: bool | str = True,
    student: str | None = None,
    pairing: Pairing | None = None,
    data: str = "digits",
    fraction: float = 1.0,
    shots: int | None = None,
    seed: int = 0,
    epochs: int | None = None,
    image_size: int | None = None,
    init: Init | None = None,
    rules: list[Rule] | None = None,
    recipe: Recipe | None = None,
    out: str | None = None,
    overwrite: bool = False,
) -> Run:
    """Train one student by one method.

    An unfinished run of the same configuration in `out` is resumed; a finished one is returned as it is.

    Args:
        preset: the method: scratch, finetune, copy, distill or gta.
        teacher: whose attention is transferred: timm/<name>, hf/<name or folder>, torchvision/<name>, the folder of
            a run, or a weights file. Methods without a teacher take only its architecture.
        pretrained: true for the teacher's own weights, false for random ones, or a weights file.
        student: architecture of a student with random weights, in the same forms; default the teacher's own.
        pairing: how the attention of a teacher of other depth, heads, patch grid or tokens is mapped to the student's.
        data: data set; "digits" is embedded.
        fraction: share of the training labels to use, above 0 and at most 1, the same in each class.
        shots: labelled images of each class; takes the place of fraction.
        seed: of the labelled subset, the initial weights, the order and the augmentation.
        epochs: passes over the labelled images; takes the place of recipe.epochs.
        image_size: input pixels, height and width; default the teacher's.
        init: where the student's weights come from; default the preset's.
        rules: what binds the student to the teacher; default the preset's.
        recipe: optimisation settings; default the preset's.
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
    start: Init = init or method.init
    bound: Sequence[Rule] = method.rules if rules is None else rules
    raise_all(_problems(preset, teacher, pretrained, student, pairing, start, bound, fraction, shots, settings))
    labels = f"{shots}shot" if shots is not None else f"{fraction:g}"
    config = {
        "preset": preset,
        "teacher": teacher,
        "pretrained": pretrained,
        "student": student,
        "pairing": asdict(pairing) if pairing else None,
        "data": data,
        "fraction": fraction,
        "shots": shots,
        "seed": seed,
        "image_size": image_size,
        "init": start,
        "rules": [rule_config(rule) for rule in bound],
        "recipe": asdict(settings),
        "out": str(out or f"runs/{preset}-{data}-{labels}-seed{seed}"),
        "overwrite": False,
    }
    return _train(config, settings, bound, overwrite=overwrite)


def _train(config: dict[str, Any], recipe: Recipe, rules: Sequence[Rule], *, overwrite: bool) -> Run:
    splits = load_data(config["data"])
    subset = labelled_subset(
        splits.train.labels, fraction=config["fraction"], shots=config["shots"], seed=config["seed"]
    )
    with seeded(config["seed"]):
        teacher, student = _networks(config, len(splits.classes))
        transfer = _bound(teacher, student, rules, config, recipe)
    folder = RunFolder.open(config["out"], config, overwrite=overwrite)
    name = f"{config['preset']} seed {config['seed']}"
    if folder.finished:
        log.info("%s: done before, in %s", name, folder.path)
        return Run(folder.path, folder.summary())
    spec = describe(student)
    with logging_to(folder.path / "log.txt"):
        log.debug("%s: %d labelled images, student %s", name, len(subset), spec)
        fitted = fit(
            Supervised(transfer, label_smoothing=recipe.label_smoothing),
            folder,
            recipe,
            train=splits.train.take(subset).with_transform(train_transform(spec)),
            validation=splits.validation.with_transform(eval_transform(spec)).materialised(),
            test=splits.test.with_transform(eval_transform(spec)).materialised(),
            classes=len(splits.classes),
            seed=config["seed"],
            name=name,
        )
        transfer.release()
        save_vit(student, folder.model, labels=list(splits.classes))
        summary = {
            "preset": config["preset"],
            "seed": config["seed"],
            "needs_teacher": config["teacher"] if any(isinstance(rule, OperandRule) for rule in rules) else None,
            "head_pairs": None if transfer.head_pairs is None else transfer.head_pairs.pairs.tolist(),
            "train": {"images": len(subset), "steps": fitted.steps, "seconds": fitted.seconds},
            "best_epoch": fitted.best_epoch,
            "validation": {"images": len(splits.validation.labels), **fitted.validation},
            "test": {"images": len(splits.test.labels), **fitted.test},
        }
        folder.write_json("summary.json", summary)
        log.info(
            "%s: test accuracy %.1f %% after %.0f s, in %s",
            name,
            100 * fitted.test["accuracy"],
            fitted.seconds,
            folder.path,
        )
    return Run(folder.path, summary)


def _problems(
    preset: str,
    teacher: str | None,
    pretrained: bool | str,
    student: str | None,
    pairing: Pairing | None,
    init: Init,
    rules: Sequence[Rule],
    fraction: float,
    shots: int | None,
    recipe: Recipe,
) -> list[str]:
    problems = check_subset(fraction, shots) + recipe.problems()
    if teacher is None and (rules or init == "teacher"):
        problems.append(
            f"preset {preset!r} needs a teacher; name one with --teacher, or make one first: "
            "attention-transfer pretrain --out runs/teacher"
        )
    if teacher is None and pretrained is not True:
        problems.append("pretrained says which weights the teacher has, but no teacher is named; add --teacher")
    if student is not None and init == "teacher":
        problems.append("a student of its own starts from random weights; leave --student out, or set --init random")
    if pairing is not None and not rules:
        problems.append(f"pairing has no effect without rules, which preset {preset!r} does not have; leave it out")
    if recipe.share_drop_path and not (rules and recipe.drop_path > 0):
        problems.append("recipe.share_drop_path has no effect without rules and a drop_path above 0; leave it out")
    return problems


def _networks(config: dict[str, Any], classes: int) -> tuple[nn.Module | None, nn.Module]:
    """Teacher and student; where no teacher is named, only an architecture is needed."""
    if config["teacher"] is None:
        if config["student"] is None:
            log.info("no teacher named: the architecture is %s", DEFAULT_ARCHITECTURE)
        return None, _fresh(config["student"] or DEFAULT_ARCHITECTURE, config, classes)
    teacher = load_vit(config["teacher"], pretrained=config["pretrained"], image_size=config["image_size"])
    if config["student"] is not None:
        return teacher, _fresh(config["student"], config, classes)
    if config["init"] == "teacher":
        return teacher, student_from(teacher, num_classes=classes)
    return teacher, student_like(teacher, num_classes=classes)


def _fresh(architecture: str, config: dict[str, Any], classes: int) -> nn.Module:
    like = load_vit(architecture, pretrained=False, num_classes=classes, image_size=config["image_size"])
    return student_like(like, num_classes=classes)


def _bound(
    teacher: nn.Module | None, student: nn.Module, rules: Sequence[Rule], config: dict[str, Any], recipe: Recipe
) -> AttentionTransfer:
    set_drop_path(student, recipe.drop_path)
    pairing = Pairing(**config["pairing"]) if config["pairing"] else None
    transfer = AttentionTransfer(teacher, student, rules, pairing=pairing, share_drop_path=recipe.share_drop_path)
    if teacher is not None and rules:
        report = check_transfer(teacher, student, pairing=pairing)
        for message in (*report.warnings, *report.notes):
            log.warning(message)
    return transfer
