"""Stopping on request: Ctrl-C, or the SIGTERM of a cluster's time limit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from attention_transfer.ui import show_cursor


class StopRequest:
    """The first Ctrl-C or SIGTERM asks for a stop after the step or the batch in hand; the second ends at once."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take both signals over inside the block, in the main thread, unless they are ignored."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        taken: list[signal.Signals] = []
        if threading.current_thread() is threading.main_thread():  # ignored as in the background of a script
            taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
        for number in taken:
            signal.signal(number, self._request)
        try:
            yield
        finally:
            for number in taken:
                signal.signal(number, before[number])

    def _request(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.requested = True
        show_cursor()  # for which the second leaves no time
        signal.signal(number, signal.SIG_DFL)  # every file is written whole, so nothing is lost by dying here
