"""Where a verb may write: never over what it reads, and never over what it did not write itself."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from attention_transfer.errors import UserError

_MAGIC = re.compile(r"[*?\[{]")


def expanded(path: str | Path) -> Path:
    """A path with "~" replaced by the home folder; unchanged if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def same_or_inside(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it, however the two are spelled: relative, through links, in other case."""
    there = Path(os.path.realpath(folder))
    named, real = Path(os.path.realpath(path.parent), path.name), Path(os.path.realpath(path))
    around = {named, *named.parents, real, *real.parents}  # a link counts where it is and where it leads
    return there in around or (there.exists() and any(place.exists() and place.samefile(there) for place in around))


def read_places(*values: object) -> list[Path]:
    """The files and folders named by settings for data sets, models and images.

    A pattern names the folder that holds all its files.
    """
    found = []
    for value in values:
        for word in _words(value):
            path = expanded(word)
            if not os.path.lexists(path) and (magic := _MAGIC.search(word)):
                path = expanded(word[: magic.start()] + "_").parent
            if os.path.lexists(path):
                found.append(path)
                break
    return found


def _words(value: object) -> list[str]:
    """The parts of a setting that may be a path: all of it, or what follows the name of a library."""
    if not isinstance(value, str) or not value:
        return []
    library, _, name = value.partition("/")
    return [
        value,
        *{"hf": [name], "timm": [name.partition(":")[2]], "torchvision": [name.partition(":")[2]]}.get(library, []),
    ]


def folder_problems(out: Path, *, data: Iterable[object] = (), models: Iterable[object] = ()) -> list[str]:
    """Why a verb that reads these can't write a folder: they lie in it, or it would lie among the images.

    Args:
        out: the folder, which need not exist.
        data: data sets in the forms of `load_data`, or image files and folders.
        models: networks in the forms of `load_vit`.
    """
    data = list(data)
    inside = [place for place in read_places(*data, *models) if same_or_inside(place, out)]
    around = [place for place in map(_folder, data) if place is not None and same_or_inside(out, place)]
    if inside:
        return [f"{inside[0]}, which is read, lies in {out}, which is written; choose another folder"]
    return [f"{out} lies in {place}, whose images are read; choose another folder" for place in around[:1]]


def file_problems(
    out: Path, *, overwrite: bool, data: Iterable[object] = (), models: Iterable[object] = (), names: Iterable[str] = ()
) -> list[str]:
    """Why a verb that reads these can't write a file; checked before any work.

    Args:
        out: the file.
        overwrite: whether the file may exist.
        data: data sets in the forms of `load_data`, or image files and folders.
        models: folders of runs and models, or names of networks.
        names: patterns of the files that belong to a model.
    """
    folder, data = out.parent, list(data)
    if not folder.is_dir():
        return [f"there is no folder {folder} to write {out.name} in; make it first"]
    if out.is_dir():
        return [f"{out} is a folder; choose another name"]
    for place in read_places(*data, *models):
        if place.is_file() and same_or_inside(out, place):
            return [f"{out} is read itself; choose another name"]
    for place in filter(None, map(_folder, data)):
        if out.exists() and same_or_inside(out, place):
            return [f"{out} lies in {place}, which is read and where nothing is replaced; choose another name"]
    for place in filter(None, map(_folder, models)):
        if any(same_or_inside(out, file) for name in names for file in [*place.glob(name), place / name]):
            return [f"{out} is a file of {place} itself, which is read; choose another name"]
    if out.exists() and not overwrite:
        return [f"{out} exists; choose another name or replace it with --overwrite"]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [f"{out} can't be written: no permission in {folder}, or it is read-only; choose another place"]
    return []


def out_problems(
    out: str | None,
    *suffixes: str,
    overwrite: bool,
    data: Iterable[object] = (),
    models: Iterable[object] = (),
    names: Iterable[str] = (),
) -> list[str]:
    """As `file_problems`, for an `--out` that may be left out and must end in one of some suffixes."""
    if out is None:
        return []
    target = expanded(out)
    if target.suffix not in suffixes:
        return [f"{out} does not end in {' or '.join(suffixes)}; choose such a name"]
    return file_problems(target, overwrite=overwrite, data=data, models=models, names=names)


def _folder(value: object) -> Path | None:
    """The folder that a setting names directly, not by a pattern or within a library."""
    if not isinstance(value, str) or not value:
        return None
    found = [path for path in map(expanded, (value, value.removeprefix("hf/"))) if path.is_dir()]
    return found[0] if found else None


def check_writable(path: Path, needed_mb: int = 50) -> None:
    """Refuse a place that can't be written to or is full, before any work."""
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise UserError(f"{path} can't be written: {parent} is a file; choose another folder with --out")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(
            f"{path} can't be written: no permission in {parent}, or it is read-only; choose another folder with --out"
        )
    free_mb = shutil.disk_usage(parent).free // 2**20
    if free_mb < needed_mb:
        raise UserError(
            f"{parent} has {free_mb} MB left, and {needed_mb} are needed; free some or choose another --out"
        )
