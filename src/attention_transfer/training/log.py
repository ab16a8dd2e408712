"""A run's `log.txt`: what the terminal shows, and the details."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attention_transfer.training.hardware import this_process


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append what the library logs inside the block to a file; of several processes, the first does."""
    log = logging.getLogger("attention_transfer")
    if this_process() > 0:
        log.setLevel(logging.WARNING)
        yield
        return
    handler = logging.FileHandler(path)
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
        handler.close()
