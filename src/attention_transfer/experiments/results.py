"""The results of a comparison: rows, tables, files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from attention_transfer.evaluation import Looks
from attention_transfer.experiments.findings import Decided, findings, label_sentences
from attention_transfer.experiments.rows import Row
from attention_transfer.experiments.statistics import Interval, gap_recovered, mean_interval
from attention_transfer.writing import write_whole


@dataclass(frozen=True)
class Line:
    """One line of the table: a method over its seeds."""

    preset: str
    accuracy: Interval
    gap: Interval
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
    gap = Interval(float("nan"), float("nan"), float("nan"))
    if shared:
        floor, top, method = (
            [by_preset[p][seed].test_accuracy for seed in shared] for p in ("scratch", "finetune", preset)
        )
        gap = gap_recovered(floor, top, method)
    values = tuple(row.test_accuracy for row in own.values())
    seconds = sum(row.seconds for row in own.values()) / len(own)
    iou, on_object = (_known([getattr(row, f"attention_{what}") for row in own.values()]) for what in ("iou", "share"))
    return Line(preset, mean_interval(values), gap, seconds, len(own), values, iou, on_object)


def _known(values: Sequence[float | None]) -> Interval | None:
    """The mean over seeds, if every seed has a value."""
    there = [value for value in values if value is not None]
    return mean_interval(there) if len(there) == len(values) else None


def percent(interval: Interval) -> str:
    """`86.1 ± 1.2`; the mean alone if there is no interval, a dash if there is no value."""
    return _shown(interval, f"{100 * interval.mean:.1f}", f" ± {100 * interval.half_width:.1f}")


def gap_text(interval: Interval) -> str:
    """`79 % (71 to 86)`: the gap recovered and its interval."""
    bounds = (
        f" ({100 * interval.low:.0f} to {100 * interval.high:.0f})" if math.isfinite(interval.low) else " (no bounds)"
    )
    return _shown(interval, f"{100 * interval.mean:.0f} %", bounds)


def _shown(interval: Interval, mean: str, bounds: str) -> str:
    return "–" if math.isnan(interval.mean) else mean if math.isnan(interval.low) else mean + bounds


_METHOD, _ACCURACY = "method", "test accuracy, % (mean ± 95 %)"
_LOOKS = ("attention on the object, %", "attention IoU, %")
_REST = ("gap recovered (95 %)", "training, s", "seeds")


def table(lines: Sequence[Line], leaders: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """Lines as text under headings.

    The attention columns are there only if the objects' masks are known, the last one only if some methods lead.
    """
    known = all(line.iou is not None and line.on_object is not None for line in lines)
    rows = [(_METHOD, _ACCURACY, *(_LOOKS if known else ()), *_REST, *(["leads"] if leaders else []))]
    for line in lines:
        looks = [percent(value) for value in (line.on_object, line.iou) if known and value is not None]
        rest = (gap_text(line.gap), f"{line.seconds:.0f}", str(line.seeds))
        leads = ["yes" if line.preset in leaders else "no"] if leaders else []
        rows.append((line.preset, percent(line.accuracy), *looks, *rest, *leads))
    return rows


def markdown(
    rows: Sequence[Row], teacher: Looks | None = None, margin: float | None = None, decided: Decided | None = None
) -> str:
    """For each amount of labels a table, and what the comparisons found in words."""
    if not rows:
        return NO_RUN + "\n"
    parts = []
    for finding in findings(rows, margin, decided):
        head, *body = table(lines(finding.rows), finding.leaders)
        text = [f"**{finding.labels}** ({finding.rows[0].images} images)", "", "| " + " | ".join(head) + " |"]
        text.append("|---" + "|---:" * (len(head) - 1) + "|")
        text += ["| " + " | ".join(line) + " |" for line in body]
        text += ["", *(f"- {sentence}" for sentence in finding.sentences)] if finding.sentences else []
        parts.append("\n".join(text))
    if equal := label_sentences(rows):
        parts.append("\n".join(["**Equal labels**", "", *(f"- {sentence}" for sentence in equal)]))
    if decided is not None:
        parts.append(decided.basis)
    if teacher is not None:
        parts.append(teacher_text(teacher))
    return "\n\n".join(parts) + "\n"


NO_RUN = "No run is finished yet, so there is nothing to compare."


def teacher_text(looks: Looks) -> str:
    """The teacher's own attention, as the reference for the students', in a sentence."""
    share, iou = 100 * looks.share, 100 * looks.iou
    return f"Of the teacher's own attention {share:.1f} % is on the object, with an IoU of {iou:.1f} %."


def write_results(
    rows: Sequence[Row],
    folder: Path,
    teacher: Looks | None = None,
    margin: float | None = None,
    decided: Decided | None = None,
) -> None:
    """Write `results.csv`, a row a run, and `results.md`, tables and sentences; and `teacher.csv` of its attention.

    Args:
        rows: the finished runs.
        folder: of the comparison.
        teacher: how its attention covers the objects, if that is known.
        margin: differences of accuracy up to this size count as none.
        decided: what is known where seeds were added until it was sure.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Row)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_whole(folder / "results.csv", text.getvalue())
    if teacher is not None:
        write_whole(folder / "teacher.csv", f"attention_iou,attention_share\n{teacher.iou},{teacher.share}\n")
    write_whole(folder / "results.md", markdown(rows, teacher, margin, decided))
