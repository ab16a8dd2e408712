"""The page of a comparison: one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from attention_transfer.evaluation import Looks
from attention_transfer.experiments.results import Row, by_labels, lines, table, teacher_text
from attention_transfer.transfer import preset
from attention_transfer.writing import write_whole

_CAPTIONS = {
    "accuracy": "Test accuracy. Small dots are seeds, diamonds their mean, bars its 95 % confidence interval.",
    "curves": "Validation accuracy of the averaged weights while training: mean over seeds, and their range.",
}


def write_report(
    folder: Path, rows: Sequence[Row], figures: Sequence[Path], *, teacher: str, teacher_looks: Looks | None
) -> Path:
    """Write `report.html` into the folder: tables, figures and what they mean, with no file beside it."""
    template = files("attention_transfer.experiments").joinpath("report.html.jinja").read_text(encoding="utf-8")
    tables = [
        {
            "title": title,
            "images": group[0].images,
            "steps": sorted({row.steps for row in group}),
            "lines": table(lines(group)),
        }
        for title, group in by_labels(rows).items()
    ]
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        template
    )
    html = page.render(
        tables=tables,
        methods=[(name, preset(name)) for name in dict.fromkeys(row.preset for row in rows)],
        charts=[_figure(path) for path in figures if not path.stem.startswith("attention-")],
        attention=[_figure(path) for path in figures if path.stem.startswith("attention-")],
        teacher=teacher,
        looks=None if teacher_looks is None else teacher_text(teacher_looks),
        runs=len(rows),
    )
    write_whole(folder / "report.html", html)
    return folder / "report.html"


def _figure(path: Path) -> dict[str, str]:
    kind = path.stem.removeprefix("attention-")
    caption = _CAPTIONS.get(kind, f"The first test image of a {kind}.")
    return {"caption": caption, "source": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()}
