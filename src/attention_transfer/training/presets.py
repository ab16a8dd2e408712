"""The verb `presets`: every method by name."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from attention_transfer.transfer import PRESETS, Preset


def presets() -> dict[str, Preset]:
    """List the methods: what each does, and where it comes from.

    Returns:
        Each preset by its name.
    """
    table = Table.grid(padding=(0, 2))
    for name, method in PRESETS.items():
        table.add_row(name, method.summary + (f" [dim]({method.source})[/dim]" if method.source else ""))
    Console().print(table)
    return dict(PRESETS)
