"""Names of several files in one word: braces as in a shell, and globs."""

from __future__ import annotations

import glob
import re
from itertools import product
from pathlib import Path

from attention_transfer.errors import UserError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_pattern(path: Path) -> bool:
    """Whether a path has braces or the signs of a glob, and no file is really called so."""
    return (glob.has_magic(str(path)) or _BRACES.search(str(path)) is not None) and not path.exists()


def expand(path: Path) -> list[Path]:
    """The files of a pattern: "{000..012}" (with zeros as given) and "{train,val}" in every combination, then globs.

    Raises:
        UserError: files that are named are missing, or nothing matches.
    """
    pieces = _BRACES.split(str(path))
    choices = [_choices(piece) if place % 2 else [piece] for place, piece in enumerate(pieces)]
    found: list[Path] = []
    absent: list[str] = []
    for name in map("".join, product(*choices)):
        present = [file for file in _matches(Path(name)) if file.is_file()]
        found += present
        absent += [] if present else [name]
    if absent:
        raise UserError(
            f"{len(absent)} of the files that {path} names are missing ({', '.join(absent[:5])}); check the pattern"
        )
    return list(dict.fromkeys(found))


def _matches(path: Path) -> list[Path]:
    if not glob.has_magic(str(path)) or path.exists():
        return [path]
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _choices(inside: str) -> list[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return inside.split(",")
    first, last = numbers.groups()
    width = len(first) if first.startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
