"""The verb `runs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.runs import ListRuns
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.experiments import RunDifference, RunRecord


@verb(ListRuns, words=("folders",), extra="train")
def runs(config: ListRuns) -> list[RunRecord] | RunDifference:
    """List runs and their results, or show in what two of them differ: runs diff A B.

    Returns:
        A record for each run; with diff, the settings, the environment and the results of both.

    Raises:
        UserError: there is no such folder, or a folder after diff is no run; nothing was written.
    """
    from attention_transfer.experiments.runs import show_runs

    return show_runs(config)
