"""The verb `data`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.data import InspectData
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.data import DataReport


@verb(InspectData, name="data", words=("path",), extra="train")
def inspect_data(config: InspectData) -> DataReport:
    """Say what a data set holds and what is wrong with it; every image is decoded.

    Prints the classes, the splits and how they were made, sizes and modes, damaged files, and pictures that are in
    several splits, which would make the reported accuracy too high, or in several classes.

    Returns:
        The report.

    Raises:
        UserError: the data set can't be loaded; or, with `strict`, images are damaged, and each is named.
    """
    from attention_transfer.data.check import report_of

    return report_of(config)
