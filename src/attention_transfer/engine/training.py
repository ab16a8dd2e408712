"""What is to be trained, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from attention_transfer.config.choices import Device, Devices, LoggerName, Strategy
from attention_transfer.config.recipe import ResolvedRecipe
from attention_transfer.objectives import Images, Objective


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is to be trained, by which settings, into which folder.

    Attributes:
        objective: what is trained; the kept weights are left in it.
        folder: where everything is written.
        recipe: optimisation settings, of which none is left open, without problems.
        train: images and labels.
        validation: what the best epoch is chosen by.
        test: read once, with the kept weights.
        classes: how many there are; `None` for an objective without labels.
        prepare: what turns a batch of pixels into the network's input, on the device.
        seed: of the order, the augmentation and all else that is drawn.
        name: for the log and the progress bar.
        device: "auto" takes GPUs where there are any.
        devices: processes on each machine, one a device; "auto" takes every GPU, `None` what the launcher says, or one.
        nodes: machines; default what the launcher (torchrun, SLURM) says, or 1.
        strategy: of several devices: "ddp", each holds the whole student; "fsdp", each holds a share.
        loggers: where metrics go besides the run's files; default TensorBoard.
    """

    objective: Objective
    folder: Path
    recipe: ResolvedRecipe
    train: Images
    validation: Images
    test: Images | None = None
    classes: int | None = None
    prepare: nn.Module | None = None
    seed: int = 0
    name: str = "training"
    device: Device = "auto"
    devices: Devices = None
    nodes: int | None = None
    strategy: Strategy = "ddp"
    loggers: Sequence[LoggerName] | None = None

    @property
    def monitor(self) -> tuple[str, str]:
        """What the best epoch is chosen by, and whether more is better ("max") or less ("min")."""
        return ("validation/accuracy", "max") if self.classes is not None else ("validation/loss", "min")


@dataclass(frozen=True)
class TrainingResult:
    """A finished training.

    Attributes:
        best_epoch: the epoch, from 1, whose weights were kept.
        validation: that epoch's validation metrics, by name.
        test: metrics on the test split, read once with the kept weights; empty if there is none.
        steps: optimiser steps.
        seconds: time in training, validation included, summed over resumptions.
    """

    best_epoch: int
    validation: dict[str, float]
    test: dict[str, float]
    steps: int
    seconds: float
