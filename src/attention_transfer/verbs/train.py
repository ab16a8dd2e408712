"""The verb `train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.training import Train
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.training import Run


@verb(Train, resumes=True, lists=True, extra="train")
def train(config: Train) -> Run:
    """Train one student by one method.

    An unfinished run of the same configuration in `out` is resumed; a finished one is returned as it is.

    Returns:
        The folder and the summary of the run.

    Raises:
        UserError: the input is wrong; every mistake is listed, and nothing was written.
    """
    from attention_transfer.training.train import train_student

    return train_student(config)
