"""Read text files of others: bounded in size, and as plain data, of which nothing is run.

`plain_yaml` reads configurations, with bounds of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attention_transfer.errors import UserError

LARGEST = 2**30
"""Bytes of a table, a list or the annotations of a data set."""


class Unsound(ValueError):
    """What is wrong with a text, as part of a sentence."""


def read_text(path: Path, largest: int = LARGEST) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        Unsound: it is too large, not a regular file, or not UTF-8.
        OSError: it is missing, or can't be read.
    """
    check_size(path, largest)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unsound(f"it is not text in UTF-8: {error}") from error


def check_size(path: Path, largest: int = LARGEST) -> None:
    """Check the size of a file before it is read.

    Raises:
        Unsound: it is too large, or not a regular file: reading a named pipe would block forever.
        OSError: it is missing, or can't be looked at.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise Unsound("it is no regular file")
    if size > largest:
        raise Unsound(f"it has {size:,} bytes, more than {largest:,}")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        Unsound: it is not JSON, is nested too deeply, or holds a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise Unsound("its lists or objects lie too deep in each other") from error
    except ValueError as error:
        raise Unsound(str(error)) from error


def read_json(path: Path) -> dict[str, Any]:
    """A file of a run that holds an object of JSON.

    Raises:
        UserError: it holds no such thing.
    """
    again = "remove it, and the command that began the run writes it again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:80]
        raise UserError(f"{path} is damaged ({reason}); {again}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it has no names with values); {again}")
    return content
