"""The verb `segment`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.segment import Segment
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.evaluation import ModelSegmentation


@verb(Segment, words=("models",), extra="train")
def segment(config: Segment) -> list[ModelSegmentation]:
    """Measure how well attention finds the foreground, against masks, by several protocols at once.

    Scores are Jaccard indices with 95 % intervals over images. The best head for each object is an oracle, which only
    someone with the mask can choose; the other protocols stand beside it.

    Returns:
        A record for each model, with a result for each layer and mass.

    Raises:
        UserError: a model can't be loaded, images have no masks or unfit ones, or a layer is out of range; nothing was
            written.
    """
    from attention_transfer.evaluation.segment_verb import segment_models

    return segment_models(config)
