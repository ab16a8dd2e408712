"""The verb `doctor`: what a model is, and whether a pair fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text
from torch import nn

from attention_transfer.config.base import as_data
from attention_transfer.config.doctor import Doctor
from attention_transfer.ui import Console
from attention_transfer.vit import (
    Pairing,
    TransferReport,
    ViTSpec,
    check_transfer,
    describe,
    load_vit,
    student_like,
)

if TYPE_CHECKING:
    from attention_transfer.evaluation.artefacts import AttentionReport

_STYLES = {"prevents": "bold red", "harms": "yellow", "mapped": "cyan", "note": "cyan", "fine": "green"}
_ROWS: dict[str, Callable[[ViTSpec], str]] = {
    "library": lambda s: s.library,
    "name in its library": lambda s: s.name,
    "blocks": lambda s: str(s.depth),
    "heads": lambda s: f"{s.heads} of dimension {s.head_dim}",
    "width": lambda s: str(s.width),
    "special tokens": lambda s: str(s.tokens),
    "patch grid": lambda s: f"{s.grid[0]}×{s.grid[1]}",
    "image": lambda s: f"{s.image_size[0]}×{s.image_size[1]}, {s.channels} channels",
    "mean": lambda s: ", ".join(f"{value:.3g}" for value in s.mean),
    "standard deviation": lambda s: ", ".join(f"{value:.3g}" for value in s.std),
    "attention-pool head": lambda s: "yes" if s.pool else "no",
    "classes": lambda s: str(s.classes) if s.classes else "no head",
}


@dataclass(frozen=True)
class Diagnosis(TransferReport):
    """What differs between a teacher and a student, and what the teacher's attention is like.

    Attributes:
        attention: what was seen on images; `None` where none were given.
    """

    attention: AttentionReport | None = None


def examine(config: Doctor) -> Diagnosis:
    """The verb `doctor`."""
    source = load_vit(config.teacher, pretrained=config.pretrained, image_size=config.image_size)
    made = _student(source, config.student, config.image_size)
    pairing = None if config.pairing is None else Pairing(**as_data(config.pairing))
    report = check_transfer(source, made, pairing=pairing)
    console = Console()
    console.print(_table(report, f"teacher {config.teacher}", f"student {config.student or 'by student_like'}"))
    for difference in report.differences:
        console.print(Text.assemble((difference.effect, _STYLES[difference.effect]), f": {difference.message}"))
    if not report.differences:
        console.print("the student fits its teacher in everything", style="green")
    return Diagnosis(report.teacher, report.student, report.differences, _looked_at(source, config, console))


def _looked_at(source: nn.Module, config: Doctor, console: Console) -> AttentionReport | None:
    """What the teacher's attention is like on images, where there are any."""
    if config.data is None:
        return None
    # Images need what training needs; without them, the library alone will do.
    from attention_transfer.evaluation.artefacts import examine_attention
    from attention_transfer.evaluation.subjects import counted, images_of

    with counted(images_of(config.data, "test", config.limit), f"looking with {config.teacher}") as images:
        seen = examine_attention(source, images)
    table = Table(title=f"attention on {seen.images} images", title_justify="left")
    for heading in ("block", "on prefix\ntokens, %", "on sinks,\n%", "sinks\nan image", "high-norm patches\nan image"):
        table.add_column(heading, justify="right")
    grid = describe(source).grid
    for block in seen.blocks:
        shares = (f"{100 * block.prefix_mass:.1f}", f"{100 * block.sink_mass:.1f}", f"{block.sinks:.2f}")
        table.add_row(str(block.layer), *shares, f"{block.high_norm * grid[0] * grid[1]:.2f}")
    console.print(table)
    for finding in seen.findings:
        console.print(Text.assemble((finding.effect, _STYLES[finding.effect]), f": {finding.message}"))
    return seen


def _student(teacher: nn.Module, student: str | None, image_size: int | None) -> nn.Module:
    if student is None or student == "standard":
        classes = describe(teacher).classes or 1
        return student_like(teacher, num_classes=classes, components="standard" if student else "native")
    return load_vit(student, pretrained=False, image_size=image_size)


def _table(report: TransferReport, *titles: str) -> Table:
    """A row for each property, and for each component that either has."""
    t, s = report.teacher, report.student
    table = Table("", *titles, title_justify="left")
    for name, show in _ROWS.items():
        style = "" if show(t) == show(s) else "bold"
        table.add_row(name, show(t), show(s), style=style)
    for component in sorted(t.components | s.components):
        has = [("yes" if component in spec.components else "no") for spec in (t, s)]
        table.add_row(component, *has, style="" if has[0] == has[1] else "bold")
    return table
