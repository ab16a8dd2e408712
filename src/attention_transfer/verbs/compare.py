"""The verb `compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.training import Compare
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.experiments import Comparison


@verb(Compare, resumes=True, extra="train", studies=True)
def compare(config: Compare) -> Comparison:
    """Compare methods over seeds, amounts of labels and any other settings of train.

    Runs that are in the folder already are not run again, so that an interrupted comparison goes on by the same
    command, and one can be extended by more presets, seeds or labels. Where no teacher is named, one is pre-trained on
    the same images, in out/teacher.

    Returns:
        The folder and a row for each run.

    Raises:
        UserError: the input is wrong; every mistake is listed, and nothing was written.
    """
    from attention_transfer.experiments.compare import compare_methods

    return compare_methods(config)
