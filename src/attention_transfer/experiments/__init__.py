"""Comparisons: grids of runs, statistics, figures and the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.lazy import lazily

if TYPE_CHECKING:
    from attention_transfer.experiments.bench import Cost as Cost
    from attention_transfer.experiments.compare import Comparison as Comparison
    from attention_transfer.experiments.runs import RunDifference as RunDifference
    from attention_transfer.experiments.runs import RunRecord as RunRecord
    from attention_transfer.experiments.status import StudyStatus as StudyStatus
    from attention_transfer.experiments.sweep import SweepResult as SweepResult
else:
    __all__, __getattr__ = lazily(__name__)
