"""Which image files are meant by names, folders and patterns."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from attention_transfer.errors import UserError, raise_all


@dataclass(frozen=True)
class ImageFile:
    """An image file, and how it was found.

    Attributes:
        path: where it is, as it was given or found.
        place: its path below the folder that was named; the name of the file where none was.
        named: whether it was named by itself: then it must be readable.
    """

    path: str
    place: Path
    named: bool


def find_images(images: Sequence[str]) -> list[ImageFile]:
    """The files that are meant, in the order given; those of a folder or a pattern by name, each once.

    Args:
        images: files, folders (with all below them, but hidden ones; by torchvision's suffixes), or patterns such as
            "photos/**/*.jpg".

    Raises:
        UserError: one of them stands for no file; each is named.
    """
    if not images:
        raise UserError("no images given; name some files, folders or patterns")
    found: list[ImageFile] = []
    problems = []
    for name in images:
        path = Path(name)
        if path.is_dir():
            below = _below(path)
            found += below
            if not below:
                suffixes = ", ".join(suffix.removeprefix(".") for suffix in IMG_EXTENSIONS)
                problems.append(f"folder {name} holds no images ({suffixes}); name another")
        elif not path.exists() and glob.has_magic(name):
            everything = glob.glob(name, recursive=True)  # noqa: PTH207 – pathlib takes no absolute patterns
            matches = [match for match in sorted(everything) if Path(match).is_file()]
            found += [ImageFile(match, Path(Path(match).name), named=False) for match in matches]
            if not matches:
                problems.append(f"no file matches {name}; check the pattern")
        else:
            found.append(ImageFile(name, Path(path.name), named=True))
    if problems:  # else it is said together with what can't be read
        problems += [f"there is no image {f.path}; check the path" for f in found if not Path(f.path).exists()]
    raise_all(problems)
    return _once(found)


def _below(folder: Path) -> list[ImageFile]:
    return [
        ImageFile(str(file), file.relative_to(folder), named=False)
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMG_EXTENSIONS
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


def _once(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Without those of folders and patterns that were there before; who names a file twice gets it twice."""
    seen: set[str] = set()
    kept = []
    for file in files:
        if file.named or file.path not in seen:
            kept.append(file)
        seen.add(file.path)
    return kept
