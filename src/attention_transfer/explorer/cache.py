"""What was used last stays, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Values by key; those that were not used for longest go first. Any thread may use it.

    Args:
        most: bytes that it may hold; a single larger value stays until the next one comes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._total = 0

    def get(self, key: K) -> V | None:
        """The value of a key, which is now the one used last."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep a value of some bytes."""
        with self._lock:
            self._drop(key)
            self._kept[key] = (value, size)
            self._total += size
            while self._total > self.most and len(self._kept) > 1:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: K) -> None:
        _, size = self._kept.pop(key, (None, 0))
        self._total -= size
