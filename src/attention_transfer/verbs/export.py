"""The verb `export`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.export import Export
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.evaluation import ExportReport


@verb(Export, words=("run",), lists=True, extra="train")
def export(config: Export) -> ExportReport:
    """Write a trained run as a model that other programs load, and check that it answers as the run does.

    Returns:
        Where it is, and how far its logits are from the run's.

    Raises:
        UserError: the run can't be loaded or can't be written in that format, or the exported model answers
            otherwise than the run; nothing is left behind.
        OSError: the disk is full, or alike; nothing is left behind either, and an exported model that is there stays.
    """
    from attention_transfer.evaluation.export import export_run

    return export_run(config)
