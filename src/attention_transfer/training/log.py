"""A run's `log.txt`: what the terminal shows, and the details."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attention_transfer.training.hardware import this_process
from attention_transfer.writing import writing


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append what the library logs inside the block to a file; of several processes, the first does."""
    log = logging.getLogger("attention_transfer")
    if this_process() > 0:
        log.setLevel(logging.WARNING)
        yield
        return
    with writing(path):
        handler = _File(path)
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        with writing(path):  # what is still to be written may find the disk full
            handler.close()


class _File(logging.FileHandler):
    """Raises what is wrong with the disk, where Python prints a traceback and goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        """As the work would end at the next file anyway."""
        error = sys.exception()
        assert error is not None
        with writing(Path(self.baseFilename)):
            raise error
