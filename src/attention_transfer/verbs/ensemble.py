"""The verb `ensemble`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.ensemble import MakeEnsemble
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.evaluation import EnsembleResult


@verb(MakeEnsemble, words=("runs",), lists=True, extra="train")
def ensemble(config: MakeEnsemble) -> EnsembleResult:
    """Average the predictions of several finished runs, and say how good that is.

    Each run gets images of its own size and normalisation. The test split is read for the report alone.

    Returns:
        Scores of members and ensemble, and how alike the members predict.

    Raises:
        UserError: runs can't be loaded or don't belong together; every mistake is listed, and nothing was written.
    """
    from attention_transfer.evaluation.ensemble import average_runs

    return average_runs(config)
