"""One page on which a person sees where every head of a network looks, and what would change if it looked elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.lazy import lazily

if TYPE_CHECKING:
    from attention_transfer.explorer.session import Explorer as Explorer
    from attention_transfer.explorer.session import Session as Session
    from attention_transfer.explorer.widget import ExplorerWidget as ExplorerWidget
else:
    __all__, __getattr__ = lazily(__name__)
