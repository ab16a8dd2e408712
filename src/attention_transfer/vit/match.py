"""Whether a student can take a teacher's attention, and what to do where it can't."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from attention_transfer.errors import raise_all
from attention_transfer.vit.describe import describe
from attention_transfer.vit.libraries import ViTSpec
from attention_transfer.vit.pairing import Pairing

# Qin et al. 2026 (arXiv 2605.07191) traced failing teachers to these.
_KNOWN_TO_MATTER = {"LayerScale", "registers", "pre-norm", "relative position bias"}
_FIX = "make the student with student_like(teacher, num_classes=…)"


@dataclass(frozen=True)
class Difference:
    """One thing in which a teacher and a student differ.

    Attributes:
        effect: "prevents" the transfer, "harms" it (known from experiments), or is "mapped", which costs no more than
            the message says.
        message: a sentence that says what differs and, where something should be done, what.
    """

    effect: Literal["prevents", "harms", "mapped"]
    message: str


@dataclass(frozen=True)
class TransferReport:
    """What differs between a teacher and a student.

    Attributes:
        teacher: what the teacher is.
        student: what the student is.
        differences: the worst first; empty where the two are alike.
    """

    teacher: ViTSpec
    student: ViTSpec
    differences: tuple[Difference, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """Differences that make the transfer impossible, a sentence each that says what to do."""
        return self._messages("prevents")

    @property
    def warnings(self) -> tuple[str, ...]:
        """Differences that are known to harm it, a sentence each that says what to do."""
        return self._messages("harms")

    @property
    def notes(self) -> tuple[str, ...]:
        """Differences that are mapped, a sentence each."""
        return self._messages("mapped")

    def raise_problems(self) -> None:
        """Raise a `UserError` that lists the problems, if there are any."""
        raise_all(self.problems)

    def _messages(self, effect: str) -> tuple[str, ...]:
        return tuple(difference.message for difference in self.differences if difference.effect == effect)


def check_transfer(teacher: nn.Module, student: nn.Module, *, pairing: Pairing | None = None) -> TransferReport:
    """Compare a teacher and a student before any training.

    Components that the teacher has and the student lacks (LayerScale, registers, pre-norm, relative position bias, …)
    are what makes attention transfer fail (Qin et al. 2026, arXiv 2605.07191).

    Args:
        teacher: a plain vision transformer.
        student: another.
        pairing: how unequal parts are mapped; default `Pairing()`.

    Raises:
        UserError: one of the two is not a supported model.
    """
    t, s = describe(teacher), describe(student)
    pairing = pairing or Pairing()
    problems = pairing.problems(t, s)
    if t.channels != s.channels:
        problems.append(f"teacher {t.name} has input channels {t.channels} but the student has {s.channels}; {_FIX}")
    lacking = t.components - s.components
    warnings = [
        f"the student lacks the teacher's {', '.join(sorted(some))}, which {verdict}; {_FIX}"
        for some, verdict in (
            (lacking & _KNOWN_TO_MATTER, "is known to break attention transfer (Qin et al. 2026)"),
            (lacking - _KNOWN_TO_MATTER, "may harm the transfer: it was not studied"),
        )
        if some
    ]
    notes = pairing.notes(t, s)
    if t.image_size != s.image_size:
        sizes = [f"{spec.image_size[0]}×{spec.image_size[1]}" for spec in (s, t)]
        notes.append(f"images of {sizes[0]} are resampled to {sizes[1]} for the teacher")
    if t.mean != s.mean or t.std != s.std:
        notes.append("teacher and student were made for different input normalisation; each gets its own")
    return TransferReport(
        t,
        s,
        (
            *(Difference("prevents", message) for message in problems),
            *(Difference("harms", message) for message in warnings),
            *(Difference("mapped", message) for message in notes),
        ),
    )
