"""The verb `data`: what a data set holds, and what is wrong with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.table import Table

from attention_transfer.config.data import InspectData
from attention_transfer.data.images import ArrayImages, FileImages, Split, Splits
from attention_transfer.data.overlap import file_digest, pixel_digest
from attention_transfer.data.sources import DATA, find_source
from attention_transfer.data.splits import first_five
from attention_transfer.data.threads import MANY, in_threads
from attention_transfer.errors import UserError, raise_all
from attention_transfer.places import expanded, out_problems
from attention_transfer.ui import Console, bars
from attention_transfer.writing import write_whole

Spread = tuple[int, float, int]
"""Smallest, median, largest."""

_SHOWN, _SHOWN_IMAGES = 20, 5  # of a list, and of the images of one picture; the file has them all


@dataclass(frozen=True)
class SplitReport:
    """One split.

    Attributes:
        images: how many.
        per_class: smallest, median and largest number of images a class; classes without images count as 0.
    """

    images: int
    per_class: Spread


@dataclass(frozen=True)
class Duplicate:
    """One picture that is there several times.

    Attributes:
        images: each by its split and its file, or its index where it has no file.
        splits: the splits that it is in.
        classes: the classes that it has.
        files: whether the files are equal, byte by byte; otherwise only the decoded pixels are.
    """

    images: tuple[str, ...]
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    files: bool


@dataclass(frozen=True)
class DataReport:
    """What a data set holds.

    Attributes:
        path: as it was asked for.
        kind: what was recognised.
        name: what people call it.
        classes: class names.
        splits: train, validation and test.
        width: of the images in pixels.
        height: of the images in pixels.
        modes: Pillow's name of each pixel format, with the number of images.
        damaged: files that can't be read, each with the reason.
        leaks: pictures that are in several splits.
        contradictions: pictures that have several classes.
        repeats: further pictures that are there more than once, within a split and a class.
        notes: how the splits were made.
    """

    path: str
    kind: str
    name: str
    classes: tuple[str, ...]
    splits: dict[str, SplitReport]
    width: Spread
    height: Spread
    modes: dict[str, int]
    damaged: dict[str, str]
    leaks: tuple[Duplicate, ...]
    contradictions: tuple[Duplicate, ...]
    repeats: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Seen:
    """One image that was decoded, or the reason why not."""

    split: str
    where: str
    label: int
    path: Path | None
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    pixels: bytes = b""
    problem: str | None = None


def report_of(config: InspectData) -> DataReport:
    """The verb `data`."""
    read = [] if config.path in DATA else [config.path]
    raise_all(out_problems(config.out, ".json", overwrite=config.overwrite, data=read))
    source = find_source(config.path)
    splits = source.load(config.strict)
    seen = _decoded(splits, duplicates=config.duplicates)
    broken = {image.where: image.problem for image in seen if image.problem is not None}
    if config.strict:
        raise_all([f"{where} {problem}" for where, problem in broken.items()])
    report = _report(config.path, source.title, splits, seen, {**splits.skipped, **broken})
    _show(report, duplicates=config.duplicates)
    if config.out is not None:
        write_whole(expanded(config.out), json.dumps(asdict(report), indent=2) + "\n")
    return report


def _decoded(splits: Splits, *, duplicates: bool) -> list[_Seen]:
    found: list[_Seen] = []
    for name, split in splits.parts.items():
        look = partial(_look, name, split, hashed=duplicates)
        indices, title = range(len(split)), f"reading {name} images"
        if isinstance(split.images, FileImages | ArrayImages):
            found += in_threads(look, indices, title)
        else:  # several threads would read from one archive
            with bars(visible=len(indices) >= MANY) as progress:
                found += [look(index) for index in progress.track(indices, description=title)]
    return found


def _look(part: str, split: Split, index: int, *, hashed: bool) -> _Seen:
    path = split.images.path(index) if isinstance(split.images, FileImages) else None
    where = f"{part} {index}" if path is None else str(path)
    known = _Seen(part, where, int(split.labels[index]), path)
    try:
        image = split.images[index]
    except UserError as error:
        return replace(known, problem=str(error).removeprefix(f"{where} "))
    return replace(known, size=image.size, mode=image.mode, pixels=pixel_digest(image) if hashed else b"")


def _report(path: str, kind: str, splits: Splits, seen: Sequence[_Seen], damaged: dict[str, str]) -> DataReport:
    whole = [image for image in seen if image.problem is None]
    if not whole:
        raise UserError(f"no image of {path} can be read; the first: {' '.join(next(iter(damaged.items())))}")
    groups: dict[bytes, list[_Seen]] = {}
    for image in whole:
        if image.pixels:
            groups.setdefault(image.pixels, []).append(image)
    several = [_duplicate(splits, group) for group in groups.values() if len(group) > 1]
    return DataReport(
        path=path,
        kind=kind,
        name=splits.name,
        classes=splits.classes,
        splits={
            name: SplitReport(len(split), _spread(np.bincount(split.labels, minlength=len(splits.classes)).tolist()))
            for name, split in splits.parts.items()
        },
        width=_spread([image.size[0] for image in whole]),
        height=_spread([image.size[1] for image in whole]),
        modes=dict(Counter(image.mode for image in whole).most_common()),
        damaged=damaged,
        leaks=tuple(found for found in several if len(found.splits) > 1),
        contradictions=tuple(found for found in several if len(found.classes) > 1),
        repeats=sum(len(found.splits) == len(found.classes) == 1 for found in several),
        notes=tuple(splits.notes),
    )


def _duplicate(splits: Splits, group: Sequence[_Seen]) -> Duplicate:
    return Duplicate(
        images=tuple(f"{image.split}: {image.where}" for image in group),
        splits=tuple(dict.fromkeys(image.split for image in group)),
        classes=tuple(dict.fromkeys(splits.classes[image.label] for image in group)),
        files=group[0].path is not None and len({image.path and file_digest(image.path) for image in group}) == 1,
    )


def _spread(values: Sequence[int]) -> Spread:
    return min(values), float(np.median(values)), max(values)


def _show(report: DataReport, *, duplicates: bool) -> None:
    console = Console()
    console.print(
        f"{report.name}: {report.kind}, {len(report.classes)} classes ({first_five(report.classes)})", markup=False
    )
    table = Table("split", "images", "images a class: min", "median", "max")
    for name, split in report.splits.items():
        low, middle, high = split.per_class
        table.add_row(name, f"{split.images:,}", f"{low:,}", f"{middle:g}", f"{high:,}")
    console.print(table)
    lines = [
        f"width {_range(report.width)}, height {_range(report.height)} pixels (min, median, max)",
        "modes: " + ", ".join(f"{count:,} {mode}" for mode, count in report.modes.items()),
        *report.notes,
        *_listed("damaged images", [f"{path}: {reason}" for path, reason in report.damaged.items()]),
    ]
    if duplicates:
        leaks = [_in_words(found, found.splits) for found in report.leaks]
        contradictions = [_in_words(found, found.classes) for found in report.contradictions]
        lines += _listed("pictures in several splits", leaks) + _listed("pictures of several classes", contradictions)
        lines.append(f"further pictures that are there more than once, in one split and class: {report.repeats:,}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _listed(title: str, found: Sequence[str]) -> list[str]:
    lines = [f"{title}: {len(found):,}", *[f"  {line}" for line in found[:_SHOWN]]]
    return [*lines, f"  and {len(found) - _SHOWN:,} more, which --out lists"] if len(found) > _SHOWN else lines


def _in_words(duplicate: Duplicate, places: Sequence[str]) -> str:
    images = ", ".join(duplicate.images[:_SHOWN_IMAGES])
    more = len(duplicate.images) - _SHOWN_IMAGES
    equal = "file" if duplicate.files else "pixels"
    return f"{first_five(places)}, same {equal}: {images}" + (f" and {more:,} more" if more > 0 else "")


def _range(spread: Spread) -> str:
    return f"{spread[0]:,}, {spread[1]:g}, {spread[2]:,}"
