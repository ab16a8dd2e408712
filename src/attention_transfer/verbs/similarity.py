"""The verb `similarity`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.similarity import MeasureSimilarity
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.evaluation import Similarity


@verb(MeasureSimilarity, words=("a", "b", "data"), extra="train")
def similarity(config: MeasureSimilarity) -> Similarity:
    """Compare the attention and the outputs of two networks, block by block, on the same images.

    Prints Jensen–Shannon divergence under four ways to match heads, CKA of the blocks' outputs, and what each network's
    attention is like: how wide, how far, how much of it sinks. With epochs, how far a run drifted after each.

    Returns:
        The result, with all pairs of blocks.

    Raises:
        UserError: a network can't be loaded, the patch grids differ, or a layer is out of range; nothing was written.
    """
    from attention_transfer.evaluation.similarity_verb import compare_networks

    return compare_networks(config)
