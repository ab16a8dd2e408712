"""Let one command at a time write a folder, by a lock of the operating system, which ends with its process."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from attention_transfer.errors import UserError

log = logging.getLogger("attention_transfer")

LOCK = ".attention-transfer.lock"
"""File name of a folder's lock; its holder writes its process, host and time into it."""


class Busy(UserError):
    """Another command holds a lock."""


_PAUSE = 0.02  # seconds between two tries to get a lock in turn
_held: set[int] = set()  # descriptors that forked processes, such as loader workers, must not keep


@contextmanager
def locked(path: Path, what: Path) -> Iterator[None]:
    """Hold a lock while the block runs.

    The system releases a lock when its process ends, however that happens, so that a dead process blocks nobody.

    Args:
        path: the lock file; it is made, with its folder, and removed at the end.
        what: what is written meanwhile, for the message.

    Raises:
        Busy: another command holds it; the message names its process, its host and since when.
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
            path.unlink(missing_ok=True)  # while it is held, so that no other command's lock is removed
            os.close(descriptor)


@contextmanager
def in_turn(path: Path, what: Path) -> Iterator[None]:
    """As `locked`, but wait until no other command holds the lock."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(path, what))
                break
            except Busy:
                time.sleep(_PAUSE)
        yield


def _opened(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # a command that ended just now removed its folder
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _taken(descriptor: int, path: Path, what: Path) -> bool:
    """Take the lock; false if the command that held it has removed its file meanwhile."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _record(path) or "a process that did not say its name yet"
        os.close(descriptor)
        raise Busy(
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
    """The holder that a lock file names, in words; empty if it names none."""
    try:
        record = json.loads(path.read_bytes())
        return f"process {record['process']} on {record['host']}, since {record['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # being written, or removed, at this moment
        return ""


def _let_go() -> None:
    """In a forked process: close the parent's locks, which must end with the parent."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
