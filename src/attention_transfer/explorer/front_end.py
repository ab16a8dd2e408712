"""The front end, which is built from the sources in explorer/ and ships as one module."""

from __future__ import annotations

from importlib.resources import files


def page_script() -> str:
    """The front end, one ES module."""
    return files("attention_transfer.explorer").joinpath("page.js").read_text(encoding="utf-8")
