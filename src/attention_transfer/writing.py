"""Write files and folders whole or not at all, and name the ones that could not be written.

New content is written beside the old, synced to the disk, and renamed into place, so that after a crash, a full disk or
a power cut either the old or the new content is there, and whole.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import SafetensorError

from attention_transfer.locking import LOCK, locked

log = logging.getLogger("attention_transfer")

_UNFINISHED = "unfinished"
_OLD = ".old"
_EXCHANGE, _HERE = 2, -100  # of Linux's renameat2: swap the two, and paths from the current folder


def write_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; bytes of file names that are not UTF-8 become Python's escapes.

    Raises:
        OSError: it can't be written; nothing new is left then, and the old content stays.
    """
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8", errors="backslashreplace")


def unfinished(path: Path) -> Path:
    """Where a file or folder lies until it is whole. A killed process may leave it; the next command removes it."""
    return path.with_name(f".{path.name}.{_UNFINISHED}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the disk inside the block into an `OSError` that names the file that was to be written.

    Python names a file only if it can't be opened, torch wraps the error of a full disk in a RuntimeError, and
    safetensors has an error class of its own.

    Raises:
        OSError: the disk is full, the folder is gone, or the like.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _system_error(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: the block writes to the hidden path that it gets, which then becomes `path`.

    Raises:
        OSError: it can't be written; nothing new is left then, and the old content stays.
    """
    temporary = unfinished(path)
    with writing(path):
        make_folder(path.parent)
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, names: Sequence[str] = ("*",)) -> Iterator[Path]:
    """Write a folder whole or not at all: the folder that the block makes at the path that it gets, becomes `path`.

    Until then it lies hidden beside `path`, or in the nearest folder above that is there. What a killed process left
    there is put back or cleared away by the next.

    Args:
        path: the folder; one that is there is replaced.
        names: patterns of the files that may be replaced with it; all else in the old folder is in the new one, too.

    Raises:
        UserError: another command is writing the same folder.
        OSError: it can't be written; nothing new is left then, and the old content stays.
    """
    real = Path(os.path.realpath(path))  # where it is a link to elsewhere, the link stays
    above = next(parent for parent in real.parents if parent.is_dir())
    hidden = unfinished(above / real.name)
    new, old = hidden / real.name, hidden / _OLD
    with writing(path):
        try:
            with locked(hidden / LOCK, path):
                if old.is_dir() and not real.exists():
                    old.rename(real)  # killed between two renames
                _clear(new, old)
                try:
                    yield new
                    if real.is_dir():
                        _carry(real, new, names)
                    sync_all(new)
                    make_folder(real.parent)
                    _put(new, real, old)
                    sync(real.parent)
                finally:
                    _clear(new, old)
        finally:
            with suppress(OSError):  # never made; or another command has begun to write there
                hidden.rmdir()


def make_folder(path: Path) -> None:
    """Make a folder and its parents so that they outlast a power cut."""
    missing = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync(place.parent)


def sync(path: Path) -> None:
    """Sync a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that can't sync folders
            raise
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Sync a folder and everything in it."""
    for place, _, files in os.walk(folder):
        for name in files:
            file = Path(place, name)
            if file.is_file() and not file.is_symlink():
                sync(file)
        sync(Path(place))


def _put(new: Path, path: Path, old: Path) -> None:
    """Move a new folder into place; the folder that was there ends up at `new` or `old`."""
    if not path.exists():
        new.rename(path)
    elif not _exchanged(new, path):
        path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            old.rename(path)
            raise


def _exchanged(one: Path, other: Path) -> bool:
    """Swap two folders in one step; false if the system or the file system can't."""
    try:
        swap = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # not Linux, or an old C library
        return False
    done: int = swap(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    return done == 0


def _carry(old: Path, new: Path, names: Sequence[str]) -> None:
    """Add to a new folder what the old one holds besides the files that are replaced; the old one stays whole."""
    kept = [entry for entry in sorted(old.iterdir()) if not any(fnmatchcase(entry.name, name) for name in names)]
    for entry in kept:
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link, dirs_exist_ok=True)
        elif not (new / entry.name).exists():
            _link(entry, new / entry.name)
    if kept:
        log.info("%s: kept what is not part of it: %s", old, ", ".join(entry.name for entry in kept))


def _link(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, or copy it if the file system has no hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _clear(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def _system_error(error: OSError | RuntimeError | SafetensorError) -> int | None:
    """The `errno` of an error; `None` if it did not come from the system."""
    if isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)", str(error))
        return int(found[1]) if found else None
    cause = error if isinstance(error, OSError) else error.__context__
    return cause.errno if isinstance(cause, OSError) else None
