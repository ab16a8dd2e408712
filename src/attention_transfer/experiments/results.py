"""The results of a comparison: rows, tables, files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from attention_transfer.experiments.statistics import Interval, gap_share, mean_interval
from attention_transfer.training import Run
from attention_transfer.writing import write_whole


@dataclass(frozen=True)
class Labels:
    """How many labels a run gets: a share of each class, or a number of images of each."""

    fraction: float = 1.0
    shots: int | None = None

    @property
    def slug(self) -> str:
        """For folder names."""
        return f"{self.shots}shot" if self.shots is not None else f"{100 * self.fraction:g}pct"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.shots} labels a class" if self.shots is not None else f"{100 * self.fraction:g} % of the labels"


@dataclass(frozen=True)
class Row:
    """One run: a method, an amount of labels, a seed, and what came of it. Accuracies are shares in [0, 1].

    `attention_iou` is there where the masks of the objects are known; see `evaluation.attention_iou`.
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


def row_of(run: Run, labels: Labels, attention_iou: float | None = None) -> Row:
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
        attention_iou=attention_iou,
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
    attention_iou: Interval | None


def lines(rows: Sequence[Row]) -> list[Line]:
    """Rows of one amount of labels, put together by method, in the order in which the methods come."""
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
        share = gap_share(floor, top, method)
    values = tuple(row.test_accuracy for row in own.values())
    seconds = sum(row.seconds for row in own.values()) / len(own)
    overlaps = [row.attention_iou for row in own.values() if row.attention_iou is not None]
    iou = mean_interval(overlaps) if len(overlaps) == len(own) else None
    return Line(preset, mean_interval(values), share, seconds, len(own), values, iou)


def by_labels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by amount of labels, in the order in which they come."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.labels, []).append(row)
    return groups


def percent(interval: Interval) -> str:
    """`86.1 ± 1.2`, or the mean alone where there is no interval, or a dash where there is no value."""
    if math.isnan(interval.mean):
        return "–"
    if math.isnan(interval.low):
        return f"{100 * interval.mean:.1f}"
    return f"{100 * interval.mean:.1f} ± {100 * interval.half_width:.1f}"


def share_text(interval: Interval) -> str:
    """`79 % (71 to 86)`: the share of the gap and its interval."""
    if math.isnan(interval.mean):
        return "–"
    if math.isnan(interval.low):
        return f"{100 * interval.mean:.0f} %"
    return f"{100 * interval.mean:.0f} % ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


def headings(lines: Sequence[Line]) -> tuple[str, ...]:
    """What `cells` has of these lines; the attention's only where the masks of the objects are known."""
    looks = ("attention IoU, %",) if _have_looks(lines) else ()
    return ("method", "test accuracy, % (mean ± 95 %)", *looks, "share of the gap (95 %)", "training, s", "seeds")


def cells(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Lines as text, under `headings`."""
    have = _have_looks(lines)
    return [
        (
            line.preset,
            percent(line.accuracy),
            *([percent(line.attention_iou)] if have and line.attention_iou is not None else []),
            share_text(line.share),
            f"{line.seconds:.0f}",
            str(line.seeds),
        )
        for line in lines
    ]


def _have_looks(lines: Sequence[Line]) -> bool:
    return all(line.attention_iou is not None for line in lines)


def markdown(rows: Sequence[Row], teacher_iou: float | None = None) -> str:
    """A Markdown table for each amount of labels."""
    parts = []
    for title, group in by_labels(rows).items():
        found = lines(group)
        head = headings(found)
        table = [f"**{title}** ({group[0].images} images)", "", "| " + " | ".join(head) + " |"]
        table.append("|---" + "|---:" * (len(head) - 1) + "|")
        table += ["| " + " | ".join(line) + " |" for line in cells(found)]
        parts.append("\n".join(table))
    if teacher_iou is not None:
        parts.append(teacher_text(teacher_iou))
    return "\n\n".join(parts) + "\n"


def teacher_text(attention_iou: float) -> str:
    """What the students' attention is to be held against, in a sentence."""
    return f"The teacher's own attention has an IoU of {100 * attention_iou:.1f} % with the objects."


def write_results(rows: Sequence[Row], folder: Path, teacher_iou: float | None = None) -> None:
    """Write `results.csv`, a row a run, and `results.md`, the tables."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Row)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_whole(folder / "results.csv", text.getvalue())
    write_whole(folder / "results.md", markdown(rows, teacher_iou))
