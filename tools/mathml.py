"""A hook of the documentation's build: formulas between lines of `$$` become MathML, which browsers draw by themselves.

GitHub draws the same source too. Nothing is loaded from another host.
"""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

_BLOCK = re.compile(r"^\$\$\n(.+?)\n\$\$$", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for each page."""
    return _BLOCK.sub(lambda match: f'<div class="formula">{convert(match[1], display="block")}</div>', markdown)
