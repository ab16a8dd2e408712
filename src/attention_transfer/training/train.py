"""The verb `train`: one student by one method."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from attention_transfer.arguments import verb
from attention_transfer.data import data_slug, labelled_subset, load_data
from attention_transfer.errors import raise_all
from attention_transfer.training.card import model_card
from attention_transfer.training.configuration import rule_config
from attention_transfer.training.engine import fit, sharding_problems
from attention_transfer.training.hardware import Device, Devices, Strategy, this_process
from attention_transfer.training.inputs import inputs_for, keep_overlap, subset_lines
from attention_transfer.training.log import logging_to
from attention_transfer.training.loggers import LoggerName
from attention_transfer.training.networks import bind, make_networks
from attention_transfer.training.objective import Supervised
from attention_transfer.training.recipe import Recipe
from attention_transfer.training.run_folder import RunFolder
from attention_transfer.training.seeds import seeded
from attention_transfer.training.train_problems import WHERE, train_problems
from attention_transfer.transfer import OperandRule, Rule
from attention_transfer.transfer import preset as find_preset
from attention_transfer.vit import Pairing, Part, Pool, describe, freeze, save_vit
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
    tunes = method.tune_teacher if tune_teacher is None else tune_teacher
    labels = f"{shots}shot" if shots is not None else f"{fraction:g}"
    place = str(out or f"runs/{preset}-{data_slug(data)}-{labels}-seed{seed}")
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
    raise_all(train_problems(config, settings, bound, tunes=tunes))
    if tunes:
        asked, config = config, {**config, "teacher": f"{place}-teacher", "pretrained": True}
        if this_process() == 0:
            RunFolder.checked(place, config, overwrite=overwrite)  # before the work that comes first
        _tune(asked, config["teacher"])
    return _train(config, settings, bound, overwrite=overwrite)


def _tune(config: dict[str, Any], out: str) -> None:
    """Fine-tune the teacher of a run on the same images, in a run of its own; `pool` is the student's alone."""
    log.info("fine-tuning the teacher first, in %s", out)
    same = ("teacher", "pretrained", "data", "strict", "fraction", "shots", "seed", "image_size", *WHERE)
    train("finetune", **{key: config[key] for key in same}, out=out)


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
        teacher, student = make_networks(config, len(splits.classes))
        frozen = freeze(student, ["all"], but=config["trained"]) if config["trained"] else None
        transfer = bind(teacher, student, rules, config, recipe)
        objective = Supervised(
            transfer,
            label_smoothing=recipe.label_smoothing,
            mixing=recipe.mixing,
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
        overlap = keep_overlap(splits, folder, data=config["data"], subset=subset)
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
            **{key: config[key] for key in WHERE},
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
            "overlap": overlap,
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
