"""Patterns that name several files: braces as in a shell, and globs."""

from __future__ import annotations

import glob
import math
import re
from collections import Counter
from itertools import product
from pathlib import Path

from attention_transfer.data.finder import left_out_below, not_a_file
from attention_transfer.errors import UserError

MOST = 100_000
"""The most files that braces may name."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_DIGITS = 18


def is_pattern(path: Path) -> bool:
    """Whether a path has braces or glob characters and is not the name of an existing file."""
    return (glob.has_magic(str(path)) or _BRACES.search(str(path)) is not None) and not path.exists()


def expand(path: Path) -> list[Path]:
    """The files of a pattern: "{000..012}" (with zeros as given) and "{train,val}" in every combination, then globs.

    Raises:
        UserError: files that are named are missing, nothing matches, or more than `MOST` are named.
    """
    pieces = _BRACES.split(str(path))
    choices = [_choices(path, piece) if place % 2 else [piece] for place, piece in enumerate(pieces)]
    if (number := math.prod(map(len, choices))) > MOST:
        raise UserError(f"{_short(path)} names {number:,} files; name at most {MOST:,}, or a folder")
    found: list[Path] = []
    absent: list[str] = []
    for name in map("".join, product(*choices)):
        magic = glob.has_magic(name) and not Path(name).exists()
        present = match_files(Path(name))[0] if magic else [Path(name)] if Path(name).is_file() else []
        found += present
        absent += [] if present else [name]
    if absent:
        raise UserError(
            f"{len(absent)} of the files that {path} names are missing ({', '.join(absent[:5])}); check the pattern"
        )
    return list(dict.fromkeys(found))


def match_files(pattern: Path) -> tuple[list[Path], Counter[str]]:
    """The files that a glob matches, by name, and how many entries were left out, by the reason (see `finder`).

    `**` stands for any number of folders; links to folders, which may lead in circles, are not followed.
    """
    if pattern.name == "**":
        pattern /= "*"
    start = Path(pattern.anchor)
    parts = pattern.relative_to(start).parts
    fixed = len(start.parts) + next(n for n, part in enumerate(parts) if glob.has_magic(part))
    found: list[Path] = []
    left_out: Counter[str] = Counter()
    for match in sorted(start.glob(str(Path(*parts)))):
        reason = left_out_below(Path(*match.parts[fixed:])) or not_a_file(match)
        if reason is None:
            found.append(match)
        elif reason != "folder":
            left_out[reason] += 1
    return found, left_out


def _choices(path: Path, inside: str) -> list[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return inside.split(",")
    first, last = numbers.groups()
    if max(len(first), len(last)) > _DIGITS or int(last) - int(first) >= MOST:
        raise UserError(f"{_short(path)} names more than {MOST:,} files; name fewer, or a folder")
    if int(last) < int(first):
        raise UserError(f"{_short(path)} counts from {first} down to {last}; write the smaller number first")
    width = len(first) if first.startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]


def _short(path: Path) -> str:
    return str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}…"
