"""The teacher and the student of a run, made and bound as its configuration says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from attention_transfer.engine.recipe import ResolvedRecipe
from attention_transfer.transfer import AttentionTransfer, Rule
from attention_transfer.vit import (
    Pairing,
    check_transfer,
    describe,
    load_vit,
    set_drop_path,
    student_from,
    student_like,
    take_part,
)

log = logging.getLogger("attention_transfer")

DEFAULT_ARCHITECTURE = "builtin/vit_digits"


def make_networks(config: dict[str, Any], classes: int) -> tuple[nn.Module | None, nn.Module]:
    """Teacher and student; where no teacher is named, only an architecture is needed.

    Args:
        config: of a run of `train`; its init, init_parts, student, teacher, pretrained, image_size and pool are read.
        classes: outputs of the student's head.

    Raises:
        UserError: one of the two can't be made.
    """
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


def warn_of_lost_pixels(student: nn.Module) -> None:
    """Say where patches do not cover the whole image: what is left at the right and at the bottom is not seen."""
    patch = next((m.stride for m in student.modules() if isinstance(m, nn.Conv2d)), (1, 1))
    size = describe(student).image_size
    lost = [length % step for length, step in zip(size, patch, strict=True)]
    if any(lost):
        fitting = " or ".join(str(n * patch[0]) for n in (size[0] // patch[0], size[0] // patch[0] + 1) if n)
        log.warning(
            "patches of %d pixels do not divide an image of %dx%d: the last %d rows and %d columns are not seen; "
            "--image-size %s would lose none",
            patch[0],
            *size,
            *lost,
            fitting,
        )


def trained_network(config: dict[str, Any]) -> nn.Module:
    """The network that a run's student is made like, whatever its head."""
    if config["init"] not in ("random", "teacher"):
        return load_vit(config["init"])
    if config["student"] is not None or config["teacher"] is None:
        return load_vit(config["student"] or DEFAULT_ARCHITECTURE, pretrained=False)
    return load_vit(config["teacher"], pretrained=config["pretrained"])


def bind(
    teacher: nn.Module | None, student: nn.Module, rules: Sequence[Rule], config: dict[str, Any], recipe: ResolvedRecipe
) -> AttentionTransfer:
    """Bind the two by the rules; what differs between them is logged.

    Raises:
        UserError: they do not fit, or a rule cannot bind them.
    """
    set_drop_path(student, recipe.drop_path)
    pairing = Pairing(**config["pairing"]) if config["pairing"] else None
    transfer = AttentionTransfer(teacher, student, rules, pairing=pairing, share_drop_path=recipe.share_drop_path)
    if teacher is not None and any(rule.needs_teacher for rule in rules):
        report = check_transfer(teacher, student, pairing=pairing)
        for message in (*report.warnings, *report.notes):
            log.warning(message)
    return transfer


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
