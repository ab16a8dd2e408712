"""The verb `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.doctor import Doctor
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.evaluation import Diagnosis


@verb(Doctor, words=("teacher", "student"))
def doctor(config: Doctor) -> Diagnosis:
    """Say what a vision transformer is, and whether a student can take its attention.

    Prints a table of both, and each difference with its effect and how to fix it. With images, it also looks at the
    teacher's attention: what sinks and registers get, and whether artefacts will spoil a transfer.

    Returns:
        The report.

    Raises:
        UserError: one of the two can't be made, or is not supported.
    """
    from attention_transfer.evaluation.doctor import examine

    return examine(config)
