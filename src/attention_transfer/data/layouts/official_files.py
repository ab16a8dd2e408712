"""Reading the files of published data sets; whatever is missing or damaged is named in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from attention_transfer.data.images import FileImages, Split
from attention_transfer.data.layouts.layout import Box, Published
from attention_transfer.errors import UserError, raise_all
from attention_transfer.text_files import check_size, parse_json, read_text

AGAIN = "unpack its archive again"

CORNERS = ("xmin", "ymin", "xmax", "ymax")

Sample = tuple[Path, int]
"""An image file and its class."""


def folder_with(*marks: str, least: int, inside: Sequence[str] = ()) -> Callable[[Path], Path | None]:
    """Finds the folder that holds a data set: the path, or a folder in it that the archive makes.

    Args:
        marks: official files and folders.
        least: how many of the marks must be there; fewer than all, so that a missing file can be named later.
        inside: names of folders in the path to look into.
    """

    def find(path: Path) -> Path | None:
        homes = (path, *(path / folder for folder in inside))
        return next((home for home in homes if sum((home / mark).exists() for mark in marks) >= least), None)

    return find


def require(home: Path, names: Sequence[str]) -> None:
    """Check that files and folders are there.

    Raises:
        UserError: some are not; a sentence each.
    """
    raise_all([f"{home / name} is missing; {AGAIN}" for name in names if not (home / name).exists()])


@contextmanager
def _read(path: Path) -> Iterator[None]:
    """Name the file in whatever is raised while it is read: readers of MATLAB, XML and zip files raise many errors."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {AGAIN}") from error
    except Exception as error:
        raise UserError(f"{path} is damaged ({error}); {AGAIN}") from error


def damaged(path: Path, problem: str) -> UserError:
    """The error for a file with this problem."""
    return UserError(f"{path} is damaged: {problem}; {AGAIN}")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, without space around them."""
    with _read(path):
        lines = [line.strip() for line in read_text(path).splitlines()]
    if not any(lines):
        raise UserError(f"{path} is empty; {AGAIN}")
    return [line for line in lines if line]


def read_rows(path: Path, columns: int) -> list[list[str]]:
    """Words of each line; the last column takes the rest of the line."""
    rows = [line.split(maxsplit=columns - 1) for line in read_lines(path)]
    for row in rows:
        if len(row) < columns:
            raise damaged(path, f"{' '.join(row)!r} is not a line of {columns} columns")
    return rows


def read_joined(home: Path, names: Sequence[str]) -> list[list[str]]:
    """Files of lines "key value", joined by the keys of the first: a list of values for each key."""
    require(home, names)
    tables = [dict(read_rows(home / name, 2)) for name in names]
    for name, table in zip(names, tables, strict=True):
        absent = next((key for key in tables[0] if key not in table), None)
        if absent is not None:
            raise damaged(home / name, f"it has no line for {absent!r} of {names[0]}")
    return [[table[key] for table in tables] for key in tables[0]]


def read_json(path: Path, keys: Sequence[str] = ()) -> Any:
    """A JSON file, that must be an object with these keys if any are given."""
    with _read(path):
        content = parse_json(read_text(path))
    if absent := [key for key in keys if not isinstance(content, dict) or key not in content]:
        raise damaged(path, f"it has no {' and no '.join(map(repr, absent))}")
    return content


def read_mat(path: Path, key: str, fields: Sequence[str] = ()) -> NDArray[Any]:
    """A variable of a MATLAB file, with at least one dimension and with these fields."""
    with _read(path):
        check_size(path)
        content = loadmat(str(path), squeeze_me=True)
    if key not in content:
        raise damaged(path, f"it has no {key!r}")
    value = np.atleast_1d(content[key])
    if absent := [field for field in fields if field not in (value.dtype.names or ())]:
        raise damaged(path, f"{key!r} has no {' and no '.join(map(repr, absent))}")
    return value


def read_xml_box(path: Path) -> Box:
    """The box around all objects of an annotation in the form of PASCAL VOC: x, y, width, height."""
    with _read(path):
        check_size(path)
        boxes = ElementTree.parse(path).iter("bndbox")
        corners = np.array([[float(box.findtext(tag, "")) for tag in CORNERS] for box in boxes])
    if not len(corners):
        raise damaged(path, "it has no box")
    return around(corners)


def around(corners: NDArray[np.float64]) -> Box:
    """The box around at least one box: (n, 4) of x0, y0, x1, y1 to x, y, width, height."""
    x, y = corners[:, :2].min(axis=0).tolist()
    right, bottom = corners[:, 2:].max(axis=0).tolist()
    return x, y, right - x, bottom - y


def box_from_one(corners: Sequence[Any], problem: str) -> Box:
    """A box whose corners count pixels from 1, with the last pixel in it, as x, y, width and height from 0."""
    try:
        x, y, right, bottom = map(float, corners)
    except (ValueError, TypeError) as error:
        raise UserError(f"{problem}; {AGAIN}") from error
    return x - 1, y - 1, right - x + 1, bottom - y + 1


def to_index(number: Any, classes: Sequence[str], path: Path) -> int:
    """A class number that starts at 1, as an index.

    Raises:
        UserError: it is no number, or there is no such class.
    """
    try:
        index = int(number) - 1
    except (ValueError, TypeError) as error:
        raise damaged(path, f"{number!r} is not a class number") from error
    if not 0 <= index < len(classes):
        raise damaged(path, f"class {number} is not one of the {len(classes)} classes")
    return index


def labelled(samples: Iterable[Sample], source: Path) -> Split:
    """Image files and their classes as a split.

    Args:
        samples: file and class of each image.
        source: the file that lists them.

    Raises:
        UserError: there is none, or files are missing.
    """
    listed = list(samples)
    if not listed:
        raise UserError(f"{source} lists no image of one of the splits; {AGAIN}")
    paths = tuple(path for path, _ in listed)
    check_there(paths, source)
    return Split(FileImages(paths), np.array([label for _, label in listed], dtype=np.int64))


def check_there(paths: Sequence[Path], source: Path) -> None:
    """Check that files are there; each folder is listed once, which is far quicker than a question for each file.

    Args:
        paths: the files.
        source: the file that lists them.

    Raises:
        UserError: some are not; said once, with how many and the first five.
    """
    names = {
        folder: {entry.name for entry in folder.iterdir()}
        for folder in {path.parent for path in paths}
        if folder.is_dir()
    }
    absent = [path for path in paths if path.name not in names.get(path.parent, ())]
    if absent:
        first = ", ".join(str(path) for path in absent[:5])
        raise UserError(f"{len(absent)} of {len(paths)} files that {source} lists are missing ({first}); {AGAIN}")


def by_list(
    lists: Mapping[str, Path], listed: Callable[[Path], list[Sample]], class_name: Callable[[Path], str]
) -> Published:
    """A data set of which a file lists each split, and whose image files say what their classes are called.

    Args:
        lists: the file for each split.
        listed: reads such a file.
        class_name: of an image file.

    Raises:
        UserError: a file is missing or damaged, or no image is of one of the classes.
    """
    rows = {part: listed(source) for part, source in lists.items()}
    names = {label: class_name(file) for samples in rows.values() for file, label in samples}
    if sorted(names) != list(range(len(names))):
        raise damaged(lists["train"], "classes are missing")
    parts = {part: labelled(samples, lists[part]) for part, samples in rows.items()}
    return Published([names[label] for label in sorted(names)], parts)
