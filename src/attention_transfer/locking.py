"""One command at a time in a folder: a lock of the operating system, which ends with the process that has it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from attention_transfer.errors import UserError

log = logging.getLogger("attention_transfer")

LOCK = ".attention-transfer.lock"
"""What the lock of a folder is called; whoever has it, writes its process, host and time into it."""

_held: set[int] = set()  # descriptors that processes which load images must not take with them


@contextmanager
def locked(path: Path, what: Path) -> Iterator[None]:
    """Hold a lock while the block runs.

    The system ends a lock with its process, however that ends, so that what a dead process left is taken over.

    Args:
        path: the file of the lock; made, with its folder, and removed at the end.
        what: what is written meanwhile, for the message.

    Raises:
        UserError: another command has it; its process, its host and since when are named.
        OSError: the file can't be written.
    """
    descriptor = _opened(path)
    while not _taken(descriptor, path, what):
        os.close(descriptor)
        descriptor = _opened(path)
    _held.add(descriptor)
    try:
        if left := _record(path):
            log.info("%s: taken over from %s, which is gone", what, left)
        _write_record(descriptor)
        yield
    finally:
        if descriptor in _held:  # not in a process that was forked meanwhile
            _held.remove(descriptor)
            path.unlink(missing_ok=True)  # while it is held, so that nobody's lock is removed
            os.close(descriptor)


def _opened(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # a command that ended just now took its folder away
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _taken(descriptor: int, path: Path, what: Path) -> bool:
    """Whether the lock is had; not where its file was removed meanwhile by the command that had it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _record(path) or "a process that did not say its name yet"
        os.close(descriptor)
        raise UserError(
            f"{what} is being written by another command ({holder}); wait for it, stop it, or choose another --out"
        ) from error
    except OSError as error:
        log.warning(
            "%s: no locks here (%s), so nothing keeps a second command out; start only one", what, error.strerror
        )
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write_record(descriptor: int) -> None:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    record = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(record).encode())


def _record(path: Path) -> str:
    """Who wrote into a lock, in words; empty where nobody did."""
    try:
        record = json.loads(path.read_bytes())
        return f"process {record['process']} on {record['host']}, since {record['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # being written, or removed, at this moment
        return ""


def _let_go() -> None:
    """In a forked process: the lock is its parent's, and must end with it."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
