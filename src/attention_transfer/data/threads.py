"""Work on many files at once, with a bar and an ETA where there are many."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from attention_transfer.ui import bars

T = TypeVar("T")
R = TypeVar("R")

MANY = 2_000
"""From this many items on, a progress bar is shown."""

_CHUNK = 32  # items a task: a future for each of a million files would take more memory than their names


def in_threads(function: Callable[[T], R], items: Sequence[T], description: str) -> list[R]:
    """Apply a function to each item, in order. Reading and decoding files release Python's global lock.

    If the function raises, so does this, and items that were not begun are left undone.
    """
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    found: list[R] = []
    pool = ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1)))
    try:
        with bars(visible=len(items) >= MANY) as progress:
            task = progress.add_task(description, total=len(items))
            for results in pool.map(lambda chunk: [function(item) for item in chunk], chunks):
                found += results
                progress.advance(task, len(results))
    finally:
        pool.shutdown(cancel_futures=True)
    return found
