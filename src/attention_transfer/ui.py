"""What is printed: the two consoles, and bars. Text is shown as it is, whatever brackets and codes are in it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from attention_transfer.streams import readable

_NARROWEST = 40  # columns; on a narrower terminal lines are broken by it, and words stay whole
_UNWRAPPED = 1000  # columns of what is no terminal, where tables have the width that they need


class Console(rich.console.Console):
    """A console to which brackets in text are no styles, and `:x:` is no picture: paths and names may hold both."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        self._has_width = "width" in options
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **options)

    @property
    def width(self) -> int:
        """Columns, as they are now; enough for any line where there is no terminal, whatever `COLUMNS` says."""
        return max(super().width, _NARROWEST) if self._has_width or self.is_terminal else _UNWRAPPED

    @width.setter
    def width(self, width: int) -> None:
        rich.console.Console.width.fset(self, width)  # type: ignore[attr-defined]

    @property
    def options(self) -> rich.console.ConsoleOptions:
        """How wide what is printed may be."""
        return super().options.update(width=self.width)

    def render_str(self, text: str, **options: Any) -> Text:
        """Text without codes that a terminal would obey."""
        return super().render_str(readable(text), **options)


console = Console(stderr=True)
"""For messages, tables and bars."""


def show_line(text: str) -> None:
    """Show what is logged, above a bar that may be drawn: one line, which is wrapped by words on a terminal alone."""
    console.print(readable(text), soft_wrap=not console.is_terminal)


def bars(*, visible: bool, note: bool = False) -> Progress:
    """Bars with an ETA, which go away when they are done; with a `note`, tasks have a field of that name."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        *([TextColumn("{task.fields[note]}", markup=False)] if note else []),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (visible and console.is_terminal),  # elsewhere rich would print an empty line
    )


def show_cursor() -> None:
    """Bring back the cursor that a bar hides. May be called at any moment, by what listens for signals."""
    if console.is_terminal:
        with suppress(OSError):
            os.write(2, b"\x1b[?25h")
