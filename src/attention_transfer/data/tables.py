"""A CSV or TSV file that lists images with their classes."""

from __future__ import annotations

import csv
import difflib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np

from attention_transfer.data.finder import counts_in_words, left_out_below, path_on_disk
from attention_transfer.data.images import FileImages, Split, Splits
from attention_transfer.data.labels import LONGEST, label_of, label_problems
from attention_transfer.data.splits import AS_GIVEN, SPLIT_NAMES, first_five, make_splits
from attention_transfer.errors import UserError, raise_all
from attention_transfer.text_files import Unsound, check_size

SUFFIXES = (".csv", ".tsv")

COLUMNS = {
    "path": ("path", "file", "image", "filename"),
    "label": ("label", "class", "category"),
    "split": ("split",),
}
"""What the columns may be called, in any case."""


@dataclass(frozen=True, slots=True)
class _Row:
    number: int  # of its line in the file
    path: str
    label: str
    split: str


@dataclass
class _Table:
    """Rows of the file, and the problems found in them."""

    rows: list[_Row]
    unused: list[str]
    has_splits: bool
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def complain(self, wrong: Callable[[_Row], bool], what: str, fix: str) -> None:
        """Add a sentence that counts the rows that are wrong and names the first five."""
        rows = [f"line {row.number}" for row in self.rows if wrong(row)]
        if rows:
            shown = ", ".join(rows[:5]) + (f" and {len(rows) - 5:,} more" if len(rows) > 5 else "")
            self.problems.append(f"{len(rows):,} of {len(self.rows):,} rows {what} ({shown}); {fix}")


def load_table(path: Path, *, strict: bool = False) -> Splits:
    """Load the images that a table lists.

    Columns: path (or file, image, filename), label (or class, category), and optionally split (train, val, test). Paths
    are relative to the table's folder; rows that name hidden files, or those of systems, are left out. Classes are in
    alphabetical order, or by number if all are numbers. Missing splits are cut off the training images.

    Args:
        path: a .csv file, separated by commas or semicolons, or a .tsv file.
        strict: refuse damaged images instead of leaving them out.

    Raises:
        UserError: columns, labels or files are missing, or an image is in two splits or classes; the lines are named.
    """
    table = _read(path)
    table.complain(lambda row: not row.label, "have no label", "add it or remove the row")
    if table.has_splits:
        allowed = "write train, val or test"
        table.complain(lambda row: row.split.lower() not in SPLIT_NAMES, "have an unknown split", allowed)
    repeated = _repeated(table)
    table.complain(
        lambda row: not Path(row.path).is_file(),
        "name files that are not there",
        f"paths are relative to {path.parent}",
    )
    table.problems += label_problems(row.label for row in table.rows)
    classes = _in_order({row.label for row in table.rows})
    if len(classes) == 1:
        table.problems.append(f"there is a single class, {first_five(classes)}, so nothing can be learnt; add others")
    raise_all([f"{path}: {problem}" for problem in table.problems])
    notes = [f"Columns of {path.name} that are not used: {first_five(table.unused)}."] if table.unused else []
    if table.left_out:
        notes.append(f"Rows that are left out by their files' names: {counts_in_words(table.left_out)}.")
    if repeated:
        notes.append(f"Rows that repeat an image are left out: {len(repeated):,}.")
    rows = [row for row in table.rows if row.number not in repeated]
    parts = {
        part: [row for row in rows if SPLIT_NAMES[row.split.lower() or "train"] == part]
        for part in ("train", "validation", "test")
    }
    given = {part: found for part, found in parts.items() if found}
    raise_all(_split_problems(path, given))
    labels = {name: label for label, name in enumerate(classes)}
    splits = {
        part: Split(
            FileImages(row.path for row in found), np.array([labels[row.label] for row in found], dtype=np.int64)
        )
        for part, found in given.items()
    }
    if len(splits) == 3:
        notes.insert(0, AS_GIVEN)
    return make_splits(path.stem, classes, splits, notes=notes, strict=strict)


def _split(rows: list[_Row], labels: dict[str, int]) -> Split:
    return Split(FileImages(row.path for row in rows), np.array([labels[row.label] for row in rows], dtype=np.int64))


def _read(path: Path) -> _Table:
    try:
        check_size(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            separator = "\t" if path.suffix.lower() == ".tsv" else max(",;", key=header.count)
            file.seek(0)
            if not header.strip():
                raise UserError(
                    f"{path} has nothing in its first line; write the names of the columns there: path, label"
                )
            lines = csv.reader(file, delimiter=separator)
            names = [name.strip() for name in next(lines, [])]
            columns = _columns(path, names)
            table = _Table([], [n for n in names if n and n not in columns.values()], "split" in columns)
            places = {kind: names.index(name) for kind, name in columns.items()}
            for cells in lines:
                if any(cell.strip() for cell in cells):
                    row = {k: cells[place].strip() if place < len(cells) else "" for k, place in places.items()}
                    if reason := _left_out(row["path"]):
                        table.left_out[reason] += 1
                        continue
                    file_path = path_on_disk(os.path.normpath(path.parent / row["path"]))
                    table.rows.append(_Row(lines.line_num, file_path, label_of(row["label"]), row.get("split", "")))
    except (UnicodeDecodeError, csv.Error, Unsound) as error:
        raise UserError(f"{path} is not a readable table ({error}); save it as CSV in UTF-8") from error
    if not table.rows:
        raise UserError(f"{path} lists no images; add a row for each")
    return table


def _left_out(name: str) -> str | None:
    """Why a row's file is ignored; of a path that is absolute or leads out of the folder, only its last part counts."""
    path = PurePath(os.path.normpath(name))
    return left_out_below(PurePath(path.name) if path.is_absolute() or path.parts[:1] == ("..",) else path)


def _columns(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The name in this table of each kind of column."""
    found: dict[str, str] = {}
    problems = []
    for kind, options in COLUMNS.items():
        fitting = [name for name in names if name.lower() in options]
        if len(fitting) > 1:
            problems.append(f"{path} has {len(fitting)} columns for the {kind}: {first_five(fitting)}; keep one")
        elif fitting:
            found[kind] = fitting[0]
        elif kind != "split":
            problems.append(
                f"{path} has no column {kind} (or {', '.join(options[1:])}), but {first_five(names)}; add it"
            )
        elif close := difflib.get_close_matches("split", [name.lower() for name in names], n=1, cutoff=0.75):
            problems.append(f"{path} has a column {close[0]!r}; did you mean 'split'?")
    raise_all(problems)
    return found


def _repeated(table: _Table) -> set[int]:
    """Numbers of the rows that repeat an image; contradictions become problems of the table."""
    first: dict[str, _Row] = {}
    again = [(row, first[row.path]) for row in table.rows if first.setdefault(row.path, row) is not row]
    splits = {
        row.number for row, other in again if SPLIT_NAMES.get(row.split.lower()) != SPLIT_NAMES.get(other.split.lower())
    }
    labels = {row.number for row, other in again if row.label != other.label}
    table.complain(lambda row: row.number in splits, "put an image into another split too", "keep one of the rows")
    table.complain(lambda row: row.number in labels, "put an image into another class too", "keep one of the rows")
    return {row.number for row, _ in again}


def _split_problems(path: Path, given: dict[str, list[_Row]]) -> list[str]:
    if "train" not in given:
        return [f"{path} has no row of split train; add some, or leave the column split out"]
    known = {row.label for row in given["train"]}
    problems = []
    for part, rows in given.items():
        if extra := sorted({row.label for row in rows} - known):
            problems.append(f"{path}: the {part} split has classes that train lacks: {first_five(extra)}; remove them")
    return problems


def _in_order(labels: set[str]) -> tuple[str, ...]:
    names = sorted(label for label in labels if label)
    numbers = all(name.isdecimal() and len(name) <= LONGEST for name in names)
    return tuple(sorted(names, key=int) if numbers else names)
