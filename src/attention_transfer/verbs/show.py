"""The verb `show`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.show import Show
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@verb(Show, words=("models", "images"), extra="train")
def show(config: Show) -> Figure:
    """Draw where networks look: attention over images, exactly on their pixels, as one figure.

    Class token or any patch; mean or maximum over heads, or each; rollout and relevance; several networks on one scale,
    and their differences; a run over its epochs, as a moving picture. What a network did not see of an image, because
    it was cropped, is shaded.

    Returns:
        The figure, of matplotlib; with epochs, that of the last one.

    Raises:
        UserError: a network or an image can't be loaded, or there is no such token, layer, head or class; nothing was
            written.
    """
    from attention_transfer.evaluation.show_verb import show_attention

    return show_attention(config)
