"""The verb `status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.status import Status
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.experiments import StudyStatus


@verb(Status, words=("folder",), extra="train", studies=True)
def status(config: Status) -> StudyStatus:
    """Say what of a comparison or a sweep runs where, since when, what waits or failed, and how long the rest takes.

    Returns:
        The runs with their states, and the time that is left.

    Raises:
        UserError: the folder holds no study, or its storage can't be reached.
    """
    from attention_transfer.experiments.status import study_status

    return study_status(config)
