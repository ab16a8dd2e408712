"""The rows of a comparison, one a run, and what they say of its grid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from attention_transfer.evaluation import Looks
from attention_transfer.experiments.statistics import paired
from attention_transfer.training import Run


@dataclass(frozen=True)
class Labels:
    """How many labels a run gets: a share of each class, or a number of images of each. And what else is varied."""

    fraction: float = 1.0
    shots: int | None = None
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def slug(self) -> str:
        """For folder names."""
        amount = f"{self.shots}shot" if self.shots is not None else f"{100 * self.fraction:g}pct"
        varied = [re.sub(r"[^\w.=-]+", "_", f"{name}={value}") for name, value in self.settings]
        return "-".join([amount, *varied])

    @property
    def title(self) -> str:
        """For people."""
        share = f"{100 * self.fraction:g} % of the labels"
        amount = f"{self.shots} labels a class" if self.shots is not None else share
        return ", ".join([amount, *(f"{name} {value}" for name, value in self.settings)])


@dataclass(frozen=True)
class Row:
    """One run: a method, an amount of labels, a seed, and the results. Accuracies are shares in [0, 1].

    The attention columns have values if the objects' masks are known; see `evaluation.Looks`.
    """

    preset: str
    labels: str
    seed: int
    images: int
    test_accuracy: float
    test_cross_entropy: float
    test_calibration_error: float
    validation_accuracy: float
    best_epoch: int
    steps: int
    seconds: float
    run: str
    attention_iou: float | None = None
    attention_share: float | None = None


def row_of(run: Run, labels: Labels, looks: Looks | None = None) -> Row:
    """The row of a finished run."""
    s = run.summary
    return Row(
        preset=s["preset"],
        labels=labels.title,
        seed=s["seed"],
        images=s["train"]["images"],
        test_accuracy=s["test"]["accuracy"],
        test_cross_entropy=s["test"]["cross_entropy"],
        test_calibration_error=s["test"]["calibration_error"],
        validation_accuracy=s["validation"]["accuracy"],
        best_epoch=s["best_epoch"],
        steps=s["train"]["steps"],
        seconds=s["train"]["seconds"],
        run=str(run.path),
        attention_iou=None if looks is None else looks.iou,
        attention_share=None if looks is None else looks.share,
    )


def by_labels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows grouped by amount of labels, in the order of first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.labels, []).append(row)
    return groups


def runs_of(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """Test accuracies of one amount of labels by method and seed.

    Raises:
        UserError: a method has a seed twice.
    """
    presets = dict.fromkeys(row.preset for row in rows)
    return {name: paired([(row.seed, row.test_accuracy) for row in rows if row.preset == name]) for name in presets}


class Amount(NamedTuple):
    """What `Labels.title` says.

    Attributes:
        number: how many labels.
        unit: of that number, with the space before it.
        settings: what else is varied, by name, as text.
    """

    number: float
    unit: str
    settings: dict[str, str]


def amount_of(title: str) -> Amount:
    """Read the title of an amount of labels, e.g. "5 labels a class, rules.weight 0.1"."""
    amount, *settings = re.split(r", (?=[A-Za-z_][\w.]* )", title)
    number, unit = amount.split(" ", 1)
    return Amount(float(number), f" {unit}", dict(part.split(" ", 1) for part in settings))
