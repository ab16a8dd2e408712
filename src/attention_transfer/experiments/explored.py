"""The explorer inside the page of a comparison: where its networks look, patch by patch."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from attention_transfer.config.explore import NETWORKS, Explore
from attention_transfer.config.training import Compare
from attention_transfer.errors import UserError
from attention_transfer.experiments.rows import Row
from attention_transfer.explorer.opening import loaded
from attention_transfer.explorer.page_file import chosen_layers, collected, elements_of

log = logging.getLogger("attention_transfer")

_IMAGES = 3


def explored(config: Compare, teacher: str, rows: Sequence[Row]) -> str | None:
    """Elements of the page, for the teacher and the best methods of one seed, on a few test images.

    Args:
        config: the comparison.
        teacher: its name.
        rows: the finished runs.

    Returns:
        HTML, or `None` where the attention of these networks takes too much room, which is logged.
    """
    first = [row for row in rows if (row.labels, row.seed) == (rows[0].labels, rows[0].seed)]
    best = sorted(first, key=lambda row: row.validation_accuracy, reverse=True)[: NETWORKS - 1]
    models = [teacher, *(row.run for row in first if row in best)]
    try:
        explorer = loaded(Explore(models, data=config.data, limit=_IMAGES, image_size=config.image_size, uploads=False))
        return elements_of(collected(explorer, chosen_layers(explorer, None)))
    except UserError as error:
        log.info("the page of the comparison shows pictures alone: %s", error)
        return None
