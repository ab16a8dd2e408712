"""The verb `presets`: every method by name."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from attention_transfer.arguments import verb
from attention_transfer.transfer import PRESETS, Preset
from attention_transfer.ui import Console


@verb
def presets() -> dict[str, Preset]:
    """List the methods: what each does, and where it comes from.

    Returns:
        Each preset by its name.
    """
    table = Table.grid(padding=(0, 2))
    for name, method in PRESETS.items():
        table.add_row(name, Text.assemble(method.summary, (f" ({method.source})" if method.source else "", "dim")))
    Console().print(table)
    return dict(PRESETS)
