"""Whether a student can take a teacher's attention, and what to do where it can't."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from attention_transfer.errors import raise_all
from attention_transfer.vit.describe import describe


@dataclass(frozen=True)
class TransferReport:
    """What differs between a teacher and a student.

    Attributes:
        problems: differences that make the transfer impossible, a sentence each with its mend.
        warnings: differences that are known to harm it, a sentence each with its mend.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    def raise_problems(self) -> None:
        """Raise a `UserError` that lists the problems, if there are any."""
        raise_all(self.problems)


def check_transfer(teacher: nn.Module, student: nn.Module) -> TransferReport:
    """Compare a teacher and a student before any training.

    Components that the teacher has and the student lacks (LayerScale, registers, pre-norm, relative position bias, …)
    are what makes attention transfer fail (Qin et al. 2026, arXiv 2605.07191).

    Raises:
        UserError: one of the two is not a supported model.
    """
    t, s = describe(teacher), describe(student)
    mend = "make the student with student_like(teacher, num_classes=…)"
    problems = [
        f"teacher {t.name} has {name} {there} but the student has {here}; {mend}"
        for name, there, here in (
            ("depth", t.depth, s.depth),
            ("heads", t.heads, s.heads),
            ("patch grid", t.grid, s.grid),
            ("prefix tokens", t.prefix_tokens, s.prefix_tokens),
            ("input size", t.image_size, s.image_size),
            ("input channels", t.channels, s.channels),
        )
        if there != here
    ]
    warnings = [
        f"the student lacks the teacher's {component}, which is known to break attention transfer; {mend}"
        for component in sorted(t.components - s.components)
    ]
    if t.mean != s.mean or t.std != s.std:
        warnings.append("teacher and student were made for different input normalisation, but get the same images")
    return TransferReport(tuple(problems), tuple(warnings))
