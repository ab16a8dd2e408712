"""The verb `corrupt`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.corrupt import Corrupt
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.evaluation import CorruptedImages


@verb(Corrupt, words=("data", "out"), extra="train")
def corrupt(config: Corrupt) -> CorruptedImages:
    """Write shifted copies of labelled images to disk, once, for `evaluate --shift`.

    The fifteen common corruptions of ImageNet-C at five severities, or objects on other backgrounds where there are
    masks. The same settings give the same images; the folder appears whole or not at all.

    Returns:
        Where they are, and how many.

    Raises:
        UserError: the images can't be loaded, have no masks for backgrounds, or the folder can't be written.
        OSError: the disk is full, or alike; nothing is left behind.
    """
    from attention_transfer.evaluation.corrupt_verb import write_corrupted

    return write_corrupted(config)
