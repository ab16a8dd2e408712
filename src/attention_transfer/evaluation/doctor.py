"""The verb `doctor`: what a model is, and whether a pair fits."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table
from rich.text import Text
from torch import nn

from attention_transfer.arguments import verb
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

_STYLES = {"prevents": "bold red", "harms": "yellow", "mapped": "cyan"}
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


@verb
def doctor(
    teacher: str,
    student: str | None = None,
    *,
    pretrained: bool | str = False,
    image_size: int | None = None,
    pairing: Pairing | None = None,
) -> TransferReport:
    """Say what a vision transformer is, and whether a student can take its attention.

    Prints a table of both, and each difference with its effect and its mend.

    Args:
        teacher: timm/<name>, hf/<name or folder>, torchvision/<name>, a folder or a weights file.
        student: the same, or "standard" for a plain ViT of the teacher's size; default the student that
            `student_like(teacher)` makes.
        pretrained: also load the teacher's weights: true, or a weights file; default only its architecture.
        image_size: input pixels, height and width; default each model's own.
        pairing: how unequal parts are mapped.

    Returns:
        The report.

    Raises:
        UserError: one of the two can't be made, or is not supported.
    """
    source = load_vit(teacher, pretrained=pretrained, image_size=image_size)
    made = _student(source, student, image_size)
    report = check_transfer(source, made, pairing=pairing)
    console = Console()
    console.print(_table(report, f"teacher {teacher}", f"student {student or 'by student_like'}"))
    for difference in report.differences:
        console.print(Text.assemble((difference.effect, _STYLES[difference.effect]), f": {difference.message}"))
    if not report.differences:
        console.print("the student fits its teacher in everything", style="green")
    return report


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
