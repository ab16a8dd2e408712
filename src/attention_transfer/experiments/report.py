"""The page of a comparison: one self-contained HTML file."""

from __future__ import annotations

import base64
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined

from attention_transfer.evaluation import Looks
from attention_transfer.experiments.findings import Decided, Finding, findings, label_sentences
from attention_transfer.experiments.pictures import accuracies, curves, over_labels, over_settings
from attention_transfer.experiments.results import NO_RUN, lines, table, teacher_text
from attention_transfer.experiments.rows import Row, by_labels
from attention_transfer.experiments.statistics import Difference, Sequential
from attention_transfer.experiments.statistics.sentences import points
from attention_transfer.text_files import read_json
from attention_transfer.transfer import preset
from attention_transfer.viewing import inline_svg
from attention_transfer.writing import write_whole


def write_report(
    folder: Path,
    rows: Sequence[Row],
    figures: Sequence[Path],
    *,
    teacher: str,
    teacher_looks: Looks | None,
    margin: float | None = None,
    decided: Decided | None = None,
    explorer: str | None = None,
) -> Path:
    """Write `report.html` into the folder: what was found in words, tables and charts, with no file beside it.

    Args:
        folder: of the comparison; links to runs are relative to it.
        rows: the finished runs; with none, the page says so.
        figures: of these the pictures of attention, `attention-….png`, are shown.
        teacher: its name.
        teacher_looks: how its attention covers the objects, if that is known.
        margin: differences of accuracy up to this size count as none.
        decided: what is known where seeds were added until it was sure.
        explorer: elements of the page in which the networks' attention can be explored, if there are any.
    """
    template = files("attention_transfer.experiments").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        template
    )
    found = findings(rows, margin, decided)
    html = page.render(
        findings=[_finding(number, finding, decided) for number, finding in enumerate(found)],
        equal=label_sentences(rows),
        basis=None if decided is None else decided.basis,
        margin=None if margin is None else f"{100 * margin:g}",
        methods=[(name, preset(name)) for name in dict.fromkeys(row.preset for row in rows)],
        charts=_charts(rows) if rows else [],
        attention=[_figure(path) for path in figures if path.stem.startswith("attention-")],
        explorer=explorer,
        teacher=teacher,
        looks=None if teacher_looks is None else teacher_text(teacher_looks),
        cost=_cost(rows),
        hours=_duration(sum(row.seconds for row in rows)),
        environment=_environment(rows),
        runs=[*_runs(folder, found)],
        no_run=NO_RUN,
    )
    write_whole(folder / "report.html", html)
    return folder / "report.html"


def _finding(number: int, finding: Finding, decided: Decided | None) -> dict[str, Any]:
    head, *body = table(lines(finding.rows), finding.leaders)
    return {
        "title": finding.labels,
        "images": finding.rows[0].images,
        "steps": sorted({row.steps for row in finding.rows}),
        "headline": finding.headline if finding.methods > 1 else "",
        "sentences": finding.sentences[1:],
        "reference": finding.reference,
        "head": head,
        "lines": [
            {"cells": cells, "leads": cells[0] in finding.leaders, "anchor": _anchor(number, cells[0])}
            for cells in body
        ],
        "differences": [
            _DIFFERENCES if decided is None else _LOOKED_AT,
            *(_difference(name, of, finding.minutes(name)) for name, of in finding.differences.items()),
        ],
    }


_DIFFERENCES = (
    "method",
    "difference (95 %)",
    "p, adjusted",
    "above in a further seed (95 %)",
    "seeds",
    "verdict",
    "further seeds",
)
_LOOKED_AT = ("method", "difference (95 %, always valid)", "seeds", "verdict", "further seeds", "their minutes")


def _difference(name: str, found: Difference | Sequential, minutes: float | None) -> tuple[str, ...]:
    more = "–" if found.more is None else f"about {found.more}"
    rest = (str(found.seeds), found.verdict, more)
    if isinstance(found, Sequential):  # p and the share of seeds are of one look
        return name, points(found.interval), *rest, "–" if minutes is None else f"{minutes:.1f}"
    wins = f"{100 * found.wins.mean:.0f} % ({100 * found.wins.low:.0f} to {100 * found.wins.high:.0f})"
    return name, points(found.interval), f"{found.p:.3f}", wins, *rest


def _charts(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Charts as parts of the page, each with a caption."""
    says = "Test accuracy with {}. Small dots are seeds, diamonds their mean, bars its 95 % interval."
    several = {title: group for title, group in by_labels(rows).items() if len({row.preset for row in group}) > 1}
    charts = [(accuracies(group), says.format(title)) for title, group in several.items()]
    for name, figure in {**over_labels(rows), **over_settings(rows)}.items():
        charts.append((figure, f"Test accuracy over {name}: mean over seeds with its 95 % interval."))
    says = "Validation accuracy of the averaged weights while training, with {}: mean over seeds, and their range."
    logged = {t: group for t, group in several.items() if any((Path(r.run) / "metrics.jsonl").is_file() for r in group)}
    charts += [(curves(group), says.format(title)) for title, group in logged.items()]
    return [{"svg": inline_svg(figure, f"chart{i}"), "caption": words} for i, (figure, words) in enumerate(charts)]


def _figure(path: Path) -> dict[str, str]:
    caption = f"The first test image of a {path.stem.removeprefix('attention-')}."
    return {"caption": caption, "source": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()}


def _cost(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """For each method the mean time of a run and of a step, and the latter against the first method's."""
    each = {name: [row for row in rows if row.preset == name] for name in dict.fromkeys(row.preset for row in rows)}
    seconds = {name: sum(row.seconds for row in own) for name, own in each.items()}
    steps = {name: seconds[name] / max(1, sum(row.steps for row in own)) for name, own in each.items()}
    first = next(iter(steps), "")
    return [
        ("method", "runs", "a run, s", "a step, ms", f"against {first}"),
        *(
            (
                name,
                str(len(own)),
                f"{seconds[name] / len(own):.0f}",
                f"{1000 * steps[name]:.0f}",
                f"{steps[name] / steps[first]:.2f}×" if steps[first] else "–",
            )
            for name, own in each.items()
        ),
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _environment(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What the runs recorded of their machines; where they differ, each value with the number of its runs."""
    found: dict[str, Counter[str]] = {}
    recorded = [path for row in rows if (path := Path(row.run) / "environment.json").is_file()]
    for path in recorded:
        for name, value in read_json(path).items():
            found.setdefault(name, Counter())[_in_words(name, value)] += 1
    if not recorded:
        return [("unknown", "the runs' environment.json are not there")]
    return [
        (name, next(iter(values)) if len(values) == 1 else "; ".join(f"{v} ({n} runs)" for v, n in values.items()))
        for name, values in found.items()
    ]


def _in_words(name: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return shlex.join(map(str, value)) if name == "command" and isinstance(value, list) else str(value)


def _runs(folder: Path, found: Sequence[Finding]) -> Iterator[dict[str, Any]]:
    """Every run, by amount of labels and method; the first of a method has the anchor of its number in the table."""
    for number, finding in enumerate(found):
        for name in dict.fromkeys(row.preset for row in finding.rows):
            for place, row in enumerate(row for row in finding.rows if row.preset == name):
                config = shlex.quote(str(Path(row.run) / "config.yaml"))
                yield {
                    "row": row,
                    "anchor": _anchor(number, name) if place == 0 else "",
                    "link": quote(os.path.relpath(row.run, folder)) + "/",
                    "command": f"attention-transfer train --config {config} --out FOLDER",
                }


def _anchor(number: int, method: str) -> str:
    return f"runs-{number}-{quote(method)}"
