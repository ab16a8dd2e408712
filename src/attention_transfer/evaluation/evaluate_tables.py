"""What `evaluate` shows of its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from attention_transfer.evaluation.evaluation_result import Evaluation, ModelScores
from attention_transfer.evaluation.intervals import Estimate
from attention_transfer.evaluation.shift import MATCHED, ShiftDifference, Shifts, ShiftScore
from attention_transfer.evaluation.subjects import short_names
from attention_transfer.ui import console, show_line

_SHOWN = 5  # confusions


def show(result: Evaluation) -> None:
    names = short_names([model.name for model in result.models])
    how = {None: "", "knn": ", features by nearest neighbours", "linear": ", features by a linear probe"}
    show_line(f"{result.images} {result.split} images of {result.data}{how[result.frozen]}")
    table = Table()
    table.add_column("", overflow="fold")
    for heading in (
        "top-1, %\n(95 %)",
        "top-5, %\n(95 %)",
        "mean per\nclass, %",
        "NLL,\nnats",
        "Brier",
        "ECE, %",
        "GFLOPs\nan image",
        "images\na second",
    ):
        table.add_column(heading, justify="right")
    for name, model in zip(names, result.models, strict=True):
        scores, cost = model.scores, model.cost
        table.add_row(
            name,
            with_interval(scores.top1, 100, 1),
            "–" if scores.top5 is None else with_interval(scores.top5, 100, 1),
            f"{100 * scores.mean_per_class:.1f}",
            with_interval(scores.nll, 1, 3),
            with_interval(scores.brier, 1, 3),
            f"{100 * scores.ece:.1f}",
            *(("–", "–") if cost is None else (f"{cost.flops / 1e9:.3g}", f"{cost.images_per_second:.3g}")),
        )
    console.print(table)
    if result.differences:
        console.print(_differences(result, dict(zip((m.name for m in result.models), names, strict=True))))
    for name, model in zip(names, result.models, strict=True):
        if confused := _confusions(model):
            show_line(f"{name} confuses most often: {'; '.join(confused)}")
    if result.shifts is not None:
        _show_shifts(result.shifts, dict(zip((m.name for m in result.models), names, strict=True)))


def _show_shifts(shifts: Shifts, names: Mapping[str, str]) -> None:
    single = [score for score in shifts.scores if score.corruption is None]
    if single:
        console.print(_shift_table(single, names))
    if different := [each for each in shifts.differences if each.shift in {score.shift for score in single}]:
        console.print(_shift_differences(different, names))
        show_line(
            f"matched: the two differ by at most {100 * MATCHED:g} point on unshifted images, so that top-1 compares "
            "robustness alone; beyond: what is left of top-1 when the unshifted difference is taken off"
        )
    if shifts.corruption:
        console.print(_corruption_table(shifts, names))


def _shift_table(scores: Sequence[ShiftScore], names: Mapping[str, str]) -> Table:
    table = Table(title="shifted images, and unshifted ones of the same classes", title_justify="left")
    table.add_column("shift", overflow="fold")
    table.add_column("model", overflow="fold")
    for heading in ("images", "classes", "top-1, %\n(95 %)", "unshifted,\n%", "drop, points\n(95 %)"):
        table.add_column(heading, justify="right")
    for score in scores:
        table.add_row(
            score.shift,
            names[score.model],
            f"{score.images:,}",
            f"{score.classes:,}",
            with_interval(score.top1, 100, 1),
            f"{100 * score.unshifted.value:.1f}",
            with_interval(score.drop, 100, 1),
        )
    return table


def _shift_differences(differences: Sequence[ShiftDifference], names: Mapping[str, str]) -> Table:
    table = Table(title="differences on the same shifted images, first minus second", title_justify="left")
    table.add_column("shift", overflow="fold")
    table.add_column("", overflow="fold")
    for heading in ("top-1, points\n(95 %)", "p", "unshifted,\npoints", "matched", "beyond, points\n(95 %)"):
        table.add_column(heading, justify="right")
    for each in differences:
        first, second = (names[name] for name in each.models)
        table.add_row(
            each.shift,
            f"{first} − {second}",
            with_interval(each.top1.difference, 100, 1, sign="+"),
            f"{each.top1.p:.2g}",
            f"{100 * each.unshifted.difference.value:+.1f}",
            "yes" if each.matched else "no",
            with_interval(each.beyond, 100, 1, sign="+"),
        )
    return table


def _corruption_table(shifts: Shifts, names: Mapping[str, str]) -> Table:
    """A row for each corruption: top-1, mean over severities; then errors over all of them."""
    table = Table(title="corrupted images: top-1, %, mean over severities", title_justify="left")
    table.add_column("corruption", overflow="fold")
    for each in shifts.corruption:
        table.add_column(names[each.model], justify="right")
    cells: dict[str, dict[str, list[float]]] = {}
    for score in shifts.scores:
        if score.corruption is not None:
            cells.setdefault(score.corruption, {}).setdefault(score.model, []).append(score.top1.value)
    for corruption, of in cells.items():
        table.add_row(corruption, *(f"{100 * np.mean(of[each.model]):.1f}" for each in shifts.corruption))
    table.add_section()
    table.add_row("mean error", *(f"{100 * each.error:.1f}" for each in shifts.corruption))
    if any(each.mce is not None for each in shifts.corruption):
        relative = ("–" if each.mce is None else f"{100 * each.mce:.1f}" for each in shifts.corruption)
        table.add_row("mCE, the first model = 100", *relative)
    return table


def _differences(result: Evaluation, names: dict[str, str]) -> Table:
    table = Table(title="differences on the same images, first minus second", title_justify="left")
    table.add_column("", overflow="fold")
    for heading in ("top-1, points\n(95 %)", "p", "NLL,\nnats", "p"):
        table.add_column(heading, justify="right")
    for pair in result.differences:
        first, second = (names[name] for name in pair.models)
        table.add_row(
            f"{first} − {second}",
            with_interval(pair.top1.difference, 100, 1, sign="+"),
            f"{pair.top1.p:.2g}",
            with_interval(pair.nll.difference, 1, 3, sign="+"),
            f"{pair.nll.p:.2g}",
        )
    return table


def _confusions(model: ModelScores) -> list[str]:
    """The most frequent mistakes, in words."""
    counts = np.array(model.scores.confusion)
    np.fill_diagonal(counts, 0)
    largest = np.argsort(-counts, axis=None, kind="stable")[:_SHOWN]
    pairs = [(int(right), int(taken)) for right, taken in zip(*np.unravel_index(largest, counts.shape), strict=True)]
    return [
        f"{model.classes[right]} with {model.classes[taken]} "
        f"({counts[right, taken]} of {sum(model.scores.confusion[right])})"
        for right, taken in pairs
        if counts[right, taken]
    ]


def with_interval(of: Estimate, scale: float, digits: int, sign: str = "") -> str:
    value = f"{scale * of.value:{sign}.{digits}f}"
    if of.low is None or of.high is None:
        return value
    return f"{value}\n({scale * of.low:{sign}.{digits}f} to {scale * of.high:{sign}.{digits}f})"
