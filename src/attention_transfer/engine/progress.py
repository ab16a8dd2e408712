"""Progress on the terminal: bars with an ETA, shared by whatever runs inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress, TaskID

from attention_transfer.engine.launchers import this_process
from attention_transfer.ui import bars


class Display:
    """The bars of one command. Only one can be live, so a verb that runs inside another draws into that one's."""

    _live: Display | None = None

    def __init__(self) -> None:
        self.progress = bars(visible=this_process() == 0, note=True)

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Display]:
        """The live display, or a new one for as long as the block lasts."""
        if cls._live is not None:
            yield cls._live
            return
        cls._live = cls()
        try:
            with cls._live.progress:
                yield cls._live
        finally:
            cls._live = None

    @contextmanager
    def bar(self, description: str, total: int, *, done: int = 0) -> Iterator[Bar]:
        """A bar that goes away when the block ends."""
        task = self.progress.add_task(description, total=total, completed=done, note="")
        try:
            yield Bar(self.progress, task)
        finally:
            self.progress.remove_task(task)


class Bar:
    """One line of the display."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self) -> None:
        """One more of the total is done."""
        self._progress.advance(self._task)

    def note(self, text: str) -> None:
        """A few words behind the numbers."""
        self._progress.update(self._task, note=text)
