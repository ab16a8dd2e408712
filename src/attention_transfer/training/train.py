"""The verb `train`: one student by one method."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from attention_transfer.data import check_subset, data_slug, labelled_subset, load_data
from attention_transfer.errors import raise_all
from attention_transfer.training.card import model_card
from attention_transfer.training.compiler import compiler_problems
from attention_transfer.training.configuration import rule_config
from attention_transfer.training.engine import fit, fit_problems, sharding_problems
from attention_transfer.training.hardware import Device, Devices, Strategy, this_process
from attention_transfer.training.inputs import input_problems, inputs_for, subset_lines
from attention_transfer.training.log import logging_to
from attention_transfer.training.loggers import LoggerName
from attention_transfer.training.mixing import LastBlock
from attention_transfer.training.objective import Supervised
from attention_transfer.training.recipe import Recipe
from attention_transfer.training.run_folder import RunFolder, write_whole
from attention_transfer.training.seeds import seeded
from attention_transfer.transfer import AttentionTransfer, Guide, NetworkRule, OperandRule, Rule
from attention_transfer.transfer import preset as find_preset
from attention_transfer.vit import (
    Pairing,
    Part,
    Pool,
    check_transfer,
    describe,
    freeze,
    load_vit,
    parts_problems,
    save_vit,
    set_drop_path,
    student_from,
    student_like,
    take_part,
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


@dataclass(frozen=True)
class Start:
    """Where a student's weights come from, and which of them are trained."""

    init: str
    parts: tuple[Part, ...]
    trained: tuple[Part, ...]

    def problems(self) -> list[str]:
        """What is wrong, a sentence each."""
        found = [*parts_problems(self.parts), *parts_problems(self.trained)]
        if self.parts and self.init == "random":
            found.append("init_parts has no effect on random weights; set init to teacher or to a network")
        return found


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
        recipe: optimisation settings; default the preset's.
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
    weights = Start(
        init or method.init,
        tuple(method.init_parts if init_parts is None else init_parts),
        tuple(method.trained if trained is None else trained),
    )
    tunes = method.tune_teacher if tune_teacher is None else tune_teacher
    raise_all(
        [
            *_problems(preset, teacher, pretrained, student, pairing, weights.init, bound, fraction, shots, settings),
            *weights.problems(),
            *input_problems(seed, image_size),
            *compiler_problems(settings, device),
            *_untaught(teacher, bound, tunes=tunes),
            *fit_problems(settings, device, devices, nodes, strategy, loggers),
        ]
    )
    where = {"device": device, "devices": devices, "nodes": nodes, "strategy": strategy, "loggers": loggers}
    labels = f"{shots}shot" if shots is not None else f"{fraction:g}"
    place = str(out or f"runs/{preset}-{data_slug(data)}-{labels}-seed{seed}")
    tuned = f"{place}-teacher"
    config = {
        "preset": preset,
        "teacher": tuned if tunes else teacher,
        "pretrained": True if tunes else pretrained,
        "student": student,
        "pairing": asdict(pairing) if pairing else None,
        "data": data,
        "strict": strict,
        "fraction": fraction,
        "shots": shots,
        "seed": seed,
        "image_size": image_size,
        "pool": pool,
        "init": weights.init,
        "init_parts": list(weights.parts),
        "trained": list(weights.trained),
        "rules": [rule_config(rule) for rule in bound],
        "tune_teacher": False,  # done: to repeat the run is to take the teacher that is named here
        "recipe": asdict(settings),
        **where,
        "out": place,
        "overwrite": False,
    }
    if tunes:
        if this_process() == 0:
            RunFolder.checked(place, config, overwrite=overwrite)  # before the work that comes first
        _tune(tuned, teacher, pretrained, data, strict, fraction, shots, seed, image_size, where)
    return _train(config, settings, bound, overwrite=overwrite)


def _train(config: dict[str, Any], recipe: Recipe, rules: Sequence[Rule], *, overwrite: bool) -> Run:
    splits = load_data(config["data"], strict=config["strict"])
    subset = labelled_subset(
        splits.train.labels,
        fraction=config["fraction"],
        shots=config["shots"],
        seed=config["seed"],
        names=splits.classes,
    )
    with seeded(config["seed"]):
        teacher, student = _networks(config, len(splits.classes))
        frozen = freeze(student, ["all"], but=config["trained"]) if config["trained"] else None
        block = LastBlock(teacher) if teacher is not None and recipe.transmix == "teacher" else None
        transfer = _bound(teacher, student, rules, config, recipe)
        objective = Supervised(
            transfer,
            label_smoothing=recipe.label_smoothing,
            mixing=recipe.mixing,
            teacher_block=block,
            frozen_rows=[] if frozen is None else frozen.rows,
        )
    raise_all(sharding_problems(objective, config["strategy"]))
    folder = RunFolder.open(config["out"], config, overwrite=overwrite)
    name = f"{config['preset']} seed {config['seed']}"
    if folder.finished:
        log.info("%s: done before, in %s", name, folder.path)
        return Run(folder.path, folder.summary())
    if len(subset) < len(splits.train):
        folder.keep("labelled.txt", subset_lines(splits.train, subset), "labelled images")
    spec = describe(student)
    with logging_to(folder.path / "log.txt"):
        log.debug("%s: %d labelled images, student %s", name, len(subset), spec)
        images = inputs_for(spec, splits, recipe, name=name, subset=subset)
        fitted = fit(
            objective,
            folder,
            recipe,
            train=images.train,
            validation=images.validation,
            test=images.test,
            classes=len(splits.classes),
            prepare=images.prepare,
            seed=config["seed"],
            name=name,
            **{key: config[key] for key in ("device", "devices", "nodes", "strategy", "loggers")},
        )
        transfer.release()
        writes = this_process() == 0
        if writes:
            save_vit(student, folder.model, labels=list(splits.classes))
        if writes and teacher is not None and any(isinstance(rule, OperandRule) for rule in rules):
            save_vit(teacher, folder.path / "teacher")  # a copied student is not complete without it
        summary = {
            "preset": config["preset"],
            "seed": config["seed"],
            "needs_teacher": config["teacher"] if any(isinstance(rule, OperandRule) for rule in rules) else None,
            "head_pairs": None if transfer.head_pairs is None else transfer.head_pairs.pairs.tolist(),
            "skipped": len(splits.skipped),
            "train": {"images": len(subset), "steps": fitted.steps, "seconds": fitted.seconds},
            "best_epoch": fitted.best_epoch,
            "validation": {"images": len(splits.validation.labels), **fitted.validation},
            "test": {"images": len(splits.test.labels), **fitted.test},
        }
        if writes:
            card = model_card(config, summary, spec, splits.classes)
            write_whole(folder.model / "README.md", card)
        folder.write_json("summary.json", summary)
        log.info(
            "%s: test accuracy %.1f %% after %.0f s, in %s",
            name,
            100 * fitted.test["accuracy"],
            fitted.seconds,
            folder.path,
        )
    return Run(folder.path, summary)


def _untaught(teacher: str | None, rules: Sequence[Rule], *, tunes: bool) -> list[str]:
    """Rules that read the class logits of a teacher which never saw a class."""
    named = [type(rule).__name__ for rule in rules if isinstance(rule, NetworkRule) and rule.reads_teacher_logits]
    folder = None if teacher is None else RunFolder(Path(teacher))
    if tunes and teacher is None:
        return ["tune_teacher fine-tunes a teacher, but none is named; add --teacher"]
    if tunes or not named or folder is None or not folder.has("config.yaml") or "preset" in folder.config():
        return []
    return [
        f"{', '.join(named)} needs a teacher that knows the classes, but {teacher} was pre-trained without labels; "
        "add --tune-teacher"
    ]


def _tune(
    out: str,
    teacher: str | None,
    pretrained: bool | str,
    data: str,
    strict: bool,
    fraction: float,
    shots: int | None,
    seed: int,
    image_size: int | None,
    where: dict[str, Any],
) -> None:
    """Fine-tune the teacher on the same images, in a run of its own."""
    log.info("fine-tuning the teacher first, in %s", out)
    train(
        "finetune",
        teacher=teacher,
        pretrained=pretrained,
        data=data,
        strict=strict,
        fraction=fraction,
        shots=shots,
        seed=seed,
        image_size=image_size,
        out=out,
        **where,
    )


def _problems(
    preset: str,
    teacher: str | None,
    pretrained: bool | str,
    student: str | None,
    pairing: Pairing | None,
    init: str,
    rules: Sequence[Rule],
    fraction: float,
    shots: int | None,
    recipe: Recipe,
) -> list[str]:
    problems = check_subset(fraction, shots) + recipe.problems()
    taught = [rule for rule in rules if rule.needs_teacher]
    if teacher is None and (taught or init == "teacher"):
        problems.append(
            f"preset {preset!r} needs a teacher; name one with --teacher, or make one first: "
            "attention-transfer pretrain --out runs/teacher"
        )
    if teacher is None and pretrained is not True:
        problems.append("pretrained says which weights the teacher has, but no teacher is named; add --teacher")
    if student is not None and init != "random":
        problems.append("a student of its own starts from random weights; leave --student out, or set --init random")
    if pairing is not None and not taught:
        problems.append(f"pairing has no effect without rules, which preset {preset!r} does not have; leave it out")
    if init == "random" and any(isinstance(rule, Guide) for rule in rules):
        log.warning("Guide keeps attention where it was, but a student that starts at random has none to keep")
    if recipe.share_drop_path and not (taught and recipe.drop_path > 0):
        problems.append("recipe.share_drop_path has no effect without rules and a drop_path above 0; leave it out")
    return problems


def _networks(config: dict[str, Any], classes: int) -> tuple[nn.Module | None, nn.Module]:
    """Teacher and student; where no teacher is named, only an architecture is needed."""
    size, teacher = config["image_size"], None
    if config["teacher"] is not None:
        teacher = load_vit(config["teacher"], pretrained=config["pretrained"], image_size=size)
    if config["init"] not in ("random", "teacher"):
        return teacher, _started(load_vit(config["init"], image_size=size), config, classes)
    if teacher is None or config["student"] is not None:
        if config["student"] is None:
            log.info("no teacher named: the architecture is %s", DEFAULT_ARCHITECTURE)
        return teacher, _fresh(config["student"] or DEFAULT_ARCHITECTURE, config, classes)
    if config["init"] == "random":
        return teacher, student_like(teacher, num_classes=classes, pool=config["pool"])
    return teacher, _started(teacher, config, classes)


def _started(source: nn.Module, config: dict[str, Any], classes: int) -> nn.Module:
    """A student with the weights of a network, or some parts of them."""
    if not config["init_parts"]:
        return student_from(source, num_classes=classes, pool=config["pool"])
    student = student_like(source, num_classes=classes, pool=config["pool"])
    taken = take_part(student, source, config["init_parts"])
    log.info("%d parameters from %s (%s), the rest at random", len(taken), config["init"], config["init_parts"])
    return student


def _fresh(architecture: str, config: dict[str, Any], classes: int) -> nn.Module:
    like = load_vit(architecture, pretrained=False, num_classes=classes, image_size=config["image_size"])
    return student_like(like, num_classes=classes, pool=config["pool"])


def _bound(
    teacher: nn.Module | None, student: nn.Module, rules: Sequence[Rule], config: dict[str, Any], recipe: Recipe
) -> AttentionTransfer:
    set_drop_path(student, recipe.drop_path)
    pairing = Pairing(**config["pairing"]) if config["pairing"] else None
    transfer = AttentionTransfer(teacher, student, rules, pairing=pairing, share_drop_path=recipe.share_drop_path)
    if teacher is not None and any(rule.needs_teacher for rule in rules):
        report = check_transfer(teacher, student, pairing=pairing)
        for message in (*report.warnings, *report.notes):
            log.warning(message)
    return transfer
