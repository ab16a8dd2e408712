"""Find the image files that names, folders and patterns stand for."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attention_transfer.data.finder import SUFFIXES, Finder, counts_in_words
from attention_transfer.data.patterns import match_files
from attention_transfer.errors import UserError, raise_all

log = logging.getLogger("attention_transfer")


@dataclass(frozen=True)
class ImageFile:
    """An image file, and how it was found.

    Attributes:
        path: its path, as it was given or found.
        place: its path below the folder that was named, or its name if none was.
        named: whether it was named itself, so that it must be readable.
    """

    path: str
    place: Path
    named: bool


def find_images(images: Sequence[str]) -> list[ImageFile]:
    """Find files in the order given; those of a folder or a pattern sorted by name, each once.

    Args:
        images: files, folders (with all pictures below them, as `data.finder` says), or patterns such as
            "photos/**/*.jpg". What is left out of folders and patterns is counted and logged.

    Raises:
        UserError: one of them stands for no file; each is named.
    """
    if not images:
        raise UserError("no images given; name some files, folders or patterns")
    found: list[ImageFile] = []
    problems = []
    for name in images:
        path = Path(name).expanduser()
        counts: Counter[str] = Counter()
        if path.is_dir():
            finder = Finder()
            try:
                (files,) = finder.find([path])
            except OSError as error:
                raise UserError(f"folder {path} can't be read ({error.strerror}); change its permissions") from error
            counts = finder.left_out
            found += [ImageFile(file, Path(file).relative_to(path), named=False) for file in files]
            if not files:
                suffixes = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES)
                besides = f", but {counts_in_words(counts)}" if counts else ""
                problems.append(f"folder {name} holds no images ({suffixes}){besides}; name another")
        elif not path.exists() and glob.has_magic(name):
            matches, counts = match_files(path)
            found += [ImageFile(str(match), Path(match.name), named=False) for match in matches]
            if not matches:
                problems.append(f"no file matches {name}; check the pattern")
        else:
            found.append(ImageFile(str(path), Path(path.name), named=True))
        if counts:
            log.info("%s: not used: %s", name, counts_in_words(counts))
    if problems:  # otherwise it is reported with the files that can't be read
        problems += [f"there is no image {f.path}; check the path" for f in found if not Path(f.path).exists()]
    raise_all(problems)
    return _once(found)


def _once(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Drop files of folders and patterns that came before; a file that is named twice stays twice."""
    seen: set[str] = set()
    kept = []
    for file in files:
        if file.named or file.path not in seen:
            kept.append(file)
        seen.add(file.path)
    return kept
