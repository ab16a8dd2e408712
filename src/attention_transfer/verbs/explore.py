"""The verb `explore`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.explore import Explore
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.explorer import ExplorerWidget


@verb(Explore, words=("models", "images"), extra="explore")
def explore(config: Explore) -> ExplorerWidget | None:
    """Open a page on which one sees where every head of every layer looks, in up to four networks at once.

    The page is served to this machine alone until Ctrl-C, shown below the cell of a notebook, or written into one file
    with `html`. Maps are computed as they are asked for.

    Returns:
        The widget in a notebook, which the cell shows; `None` otherwise, once the page has ended.

    Raises:
        UserError: a network or an image can't be loaded, or no port can be listened on.
    """
    from attention_transfer.explorer.opening import explore_networks

    return explore_networks(config)
