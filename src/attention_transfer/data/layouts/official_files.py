"""Reading the files of published data sets; whatever is missing or damaged is named in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from attention_transfer.data.images import FileImages, Split
from attention_transfer.data.layouts.layout import Box, Published
from attention_transfer.errors import UserError, raise_all
from attention_transfer.text_files import Unsound, check_size, parse_json, read_text

AGAIN = "unpack its archive again"

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


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, without space around them."""
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {AGAIN}") from error
    except (Unsound, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); {AGAIN}") from error
    lines = [line for line in lines if line]
    if not lines:
        raise UserError(f"{path} is empty; {AGAIN}")
    return lines


def read_rows(path: Path, columns: int) -> list[list[str]]:
    """Words of each line; the last column takes the rest of the line."""
    rows = [line.split(maxsplit=columns - 1) for line in read_lines(path)]
    for row in rows:
        if len(row) < columns:
            raise UserError(f"{path} is damaged: {' '.join(row)!r} is not a line of {columns} columns; {AGAIN}")
    return rows


def read_joined(home: Path, names: Sequence[str]) -> list[list[str]]:
    """Files of lines "key value", joined by the keys of the first: a list of values for each key."""
    require(home, names)
    tables = [dict(read_rows(home / name, 2)) for name in names]
    for name, table in zip(names, tables, strict=True):
        absent = next((key for key in tables[0] if key not in table), None)
        if absent is not None:
            raise UserError(f"{home / name} is damaged: it has no line for {absent!r} of {names[0]}; {AGAIN}")
    return [[table[key] for table in tables] for key in tables[0]]


def read_json(path: Path, keys: Sequence[str] = ()) -> Any:
    """A JSON file, that must be an object with these keys where any are given."""
    try:
        content = parse_json(read_text(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {AGAIN}") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); {AGAIN}") from error
    absent = [key for key in keys if not isinstance(content, dict) or key not in content]
    if absent:
        raise UserError(f"{path} is damaged: it has no {' and no '.join(map(repr, absent))}; {AGAIN}")
    return content


def read_mat(path: Path, key: str, fields: Sequence[str] = ()) -> NDArray[Any]:
    """A variable of a MATLAB file, with at least one dimension and with these fields."""
    try:
        check_size(path)
        value = np.atleast_1d(loadmat(str(path), squeeze_me=True)[key])
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {AGAIN}") from error
    except KeyError as error:
        raise UserError(f"{path} is damaged: it has no {key!r}; {AGAIN}") from error
    except Exception as error:  # of many kinds, as of scipy's readers, zlib and struct
        raise UserError(f"{path} is damaged ({error}); {AGAIN}") from error
    absent = [field for field in fields if field not in (value.dtype.names or ())]
    if absent:
        raise UserError(f"{path} is damaged: {key!r} has no {' and no '.join(map(repr, absent))}; {AGAIN}")
    return value


def read_xml_box(path: Path) -> Box:
    """The box around all objects of an annotation in the form of PASCAL VOC: x, y, width, height."""
    try:
        check_size(path)
        corners = np.array(
            [
                [float(box.findtext(tag, "")) for tag in ("xmin", "ymin", "xmax", "ymax")]
                for box in ElementTree.parse(path).iter("bndbox")
            ]
        )
        return around(corners)
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); {AGAIN}") from error


def around(corners: NDArray[np.float64]) -> Box:
    """The box around boxes: (n, 4) of x0, y0, x1, y1 to x, y, width, height."""
    if not len(corners):
        raise ValueError("no box")
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
        raise UserError(f"{path} is damaged: {number!r} is not a class number; {AGAIN}") from error
    if not 0 <= index < len(classes):
        raise UserError(f"{path} is damaged: class {number} is not one of the {len(classes)} classes; {AGAIN}")
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
        raise UserError(f"{lists['train']} is damaged: classes are missing; {AGAIN}")
    parts = {part: labelled(samples, lists[part]) for part, samples in rows.items()}
    return Published([names[label] for label in sorted(names)], parts)
