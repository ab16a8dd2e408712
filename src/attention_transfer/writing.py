"""Writing files and folders whole or not at all, and saying which could not be written."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_UNFINISHED = "unfinished"


def write_whole(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, whole or not at all; bytes of names that are no UTF-8 are spelt as Python does.

    Raises:
        OSError: it can't be written; nothing is left then, and what was there before stays.
    """
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8", errors="backslashreplace")


def unfinished(path: Path) -> Path:
    """Where a file lies until it is whole. A killed process may leave it; the next one that writes it takes it over."""
    return path.with_name(f".{path.name}.{_UNFINISHED}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let an error of the disk inside the block be an `OSError` that names what was to be written.

    Python names a file only where it can't be opened, torch puts a RuntimeError around the error of a full disk, and
    safetensors has a kind of its own.

    Raises:
        OSError: the disk is full, the folder is gone, and alike.
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
    """Write a file whole or not at all: what the block writes to the hidden path that it gets, becomes `path`.

    Raises:
        OSError: it can't be written; nothing is left then, and what was there before stays.
    """
    temporary = unfinished(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Write a folder whole or not at all: the folder that the block makes at the path that it gets, becomes `path`.

    Until then it lies hidden beside `path`, or in the nearest folder above that is there. One that a killed process
    left is cleared away by the next.

    Raises:
        OSError: it can't be written; nothing is left then, and what was there before stays.
    """
    path = path.absolute()
    above = next(parent for parent in path.parents if parent.is_dir())
    prefix = f".{path.name}.{_UNFINISHED}-"
    with writing(path):
        for left in [entry for entry in above.iterdir() if entry.name.startswith(prefix)]:
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=above, prefix=prefix) as temporary:
            new = Path(temporary) / path.name
            yield new
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                path.rename(Path(temporary) / ".old")  # so that there is no moment with half of it
            new.rename(path)


def _system_error(error: OSError | RuntimeError | SafetensorError) -> int | None:
    """The system's number of what went wrong; `None` where it was something else."""
    if isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)", str(error))
        return int(found[1]) if found else None
    cause = error if isinstance(error, OSError) else error.__context__
    return cause.errno if isinstance(cause, OSError) else None
