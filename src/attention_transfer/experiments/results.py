"""The results of a comparison: rows, tables, files."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from attention_transfer.evaluation import Looks
from attention_transfer.experiments.statistics import Interval, gap_recovered, mean_interval
from attention_transfer.training import Run
from attention_transfer.writing import write_whole


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


@dataclass(frozen=True)
class Line:
    """One line of the table: a method over its seeds."""

    preset: str
    accuracy: Interval
    share: Interval
    seconds: float
    seeds: int
    values: tuple[float, ...]
    iou: Interval | None
    on_object: Interval | None


def lines(rows: Sequence[Row]) -> list[Line]:
    """Rows of one amount of labels, grouped by method, in the order of first appearance."""
    by_preset: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_preset.setdefault(row.preset, {})[row.seed] = row
    return [_line(preset, by_preset) for preset in by_preset]


def _line(preset: str, by_preset: dict[str, dict[int, Row]]) -> Line:
    own = by_preset[preset]
    shared = [seed for seed in own if all(seed in by_preset.get(p, {}) for p in ("scratch", "finetune"))]
    share = Interval(float("nan"), float("nan"), float("nan"))
    if shared:
        floor, top, method = (
            [by_preset[p][seed].test_accuracy for seed in shared] for p in ("scratch", "finetune", preset)
        )
        share = gap_recovered(floor, top, method)
    values = tuple(row.test_accuracy for row in own.values())
    seconds = sum(row.seconds for row in own.values()) / len(own)
    iou, on_object = (_known([getattr(row, f"attention_{what}") for row in own.values()]) for what in ("iou", "share"))
    return Line(preset, mean_interval(values), share, seconds, len(own), values, iou, on_object)


def _known(values: Sequence[float | None]) -> Interval | None:
    """The mean over seeds, if every seed has a value."""
    there = [value for value in values if value is not None]
    return mean_interval(there) if len(there) == len(values) else None


def by_labels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows grouped by amount of labels, in the order of first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.labels, []).append(row)
    return groups


def percent(interval: Interval) -> str:
    """`86.1 ± 1.2`; the mean alone if there is no interval, a dash if there is no value."""
    return _shown(interval, f"{100 * interval.mean:.1f}", f" ± {100 * interval.half_width:.1f}")


def share_text(interval: Interval) -> str:
    """`79 % (71 to 86)`: the share of the gap and its interval."""
    bounds = f" ({100 * interval.low:.0f} to {100 * interval.high:.0f})"
    return _shown(interval, f"{100 * interval.mean:.0f} %", bounds)


def _shown(interval: Interval, mean: str, bounds: str) -> str:
    return "–" if math.isnan(interval.mean) else mean if math.isnan(interval.low) else mean + bounds


_METHOD, _ACCURACY = "method", "test accuracy, % (mean ± 95 %)"
_LOOKS = ("attention on the object, %", "attention IoU, %")
_REST = ("share of the gap (95 %)", "training, s", "seeds")


def table(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Lines as text under headings; the attention columns only if the objects' masks are known."""
    known = all(line.iou is not None and line.on_object is not None for line in lines)
    rows = [(_METHOD, _ACCURACY, *(_LOOKS if known else ()), *_REST)]
    for line in lines:
        looks = [percent(value) for value in (line.on_object, line.iou) if known and value is not None]
        rest = (share_text(line.share), f"{line.seconds:.0f}", str(line.seeds))
        rows.append((line.preset, percent(line.accuracy), *looks, *rest))
    return rows


def markdown(rows: Sequence[Row], teacher: Looks | None = None) -> str:
    """A Markdown table for each amount of labels."""
    parts = []
    for title, group in by_labels(rows).items():
        head, *body = table(lines(group))
        text = [f"**{title}** ({group[0].images} images)", "", "| " + " | ".join(head) + " |"]
        text.append("|---" + "|---:" * (len(head) - 1) + "|")
        text += ["| " + " | ".join(line) + " |" for line in body]
        parts.append("\n".join(text))
    if teacher is not None:
        parts.append(teacher_text(teacher))
    return "\n\n".join(parts) + "\n"


def teacher_text(looks: Looks) -> str:
    """The teacher's own attention, as the reference for the students', in a sentence."""
    share, iou = 100 * looks.share, 100 * looks.iou
    return f"Of the teacher's own attention {share:.1f} % is on the object, with an IoU of {iou:.1f} %."


def write_results(rows: Sequence[Row], folder: Path, teacher: Looks | None = None) -> None:
    """Write `results.csv`, a row a run, and `results.md`, the tables; and `teacher.csv`, if its attention is known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Row)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_whole(folder / "results.csv", text.getvalue())
    if teacher is not None:
        write_whole(folder / "teacher.csv", f"attention_iou,attention_share\n{teacher.iou},{teacher.share}\n")
    write_whole(folder / "results.md", markdown(rows, teacher))
