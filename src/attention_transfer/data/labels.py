"""Check the labels of tables and shards: each image must have one class."""

from __future__ import annotations

import re
from collections.abc import Iterable

from attention_transfer.data.finder import as_text

LONGEST = 255
"""Characters that a class name may have, as a file's name."""

_LIST = re.compile(r".*\S\s*[|;]\s*\S.*|\[[^][]*[,\s][^][]*\]|\{[^{}]*[,\s][^{}]*\}|\d+(\s+\d+)+")
_NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?")
_WHOLE = re.compile(r"[-+]?\d+([.,]0*)?")


def label_of(text: str) -> str:
    """A label without surrounding space, in Unicode's composed form."""
    return as_text(text.strip())


def label_problems(labels: Iterable[str]) -> list[str]:
    """Why labels can't be classes: they are too long, hold several classes, or are measurements."""
    names = sorted({label for label in labels if label})
    problems = []
    if long := [name for name in names if len(name) > LONGEST]:
        problems.append(
            f"{len(long):,} labels have more than {LONGEST} characters (the first: {long[0][:40]}…); "
            "a label is the name or the number of a class"
        )
    elif joined := _joined(names):
        problems.append(
            f"{len(joined):,} labels seem to hold several classes (the first: {joined[0]!r}); each image must have "
            "the name or the number of one class; several labels an image are not supported"
        )
    elif fractions := _fractions(names):
        problems.append(
            f"the labels are numbers that are not whole (such as {fractions[0]}): measurements are not supported, each "
            "image must have one class; call them by names or whole numbers where they are classes"
        )
    return problems


def _joined(names: list[str]) -> list[str]:
    """Labels that list several classes: by their form, or by commas if each part is a label of other images."""
    known = {*names}
    commas = {name for name in names if "," in name and {part.strip() for part in name.split(",")} <= known}
    return [name for name in names if name in commas or _LIST.fullmatch(name)]


def _fractions(names: list[str]) -> list[str]:
    """Labels with digits after the decimal point, if all labels are numbers."""
    if not all(_NUMBER.fullmatch(name) for name in names):
        return []
    return [name for name in names if not _WHOLE.fullmatch(name)]
