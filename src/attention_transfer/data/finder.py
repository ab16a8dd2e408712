"""Find the pictures below a folder: one rule for class folders, `predict`, tables, shards and published sets.

- Pictures are regular files, or links to them, with one of torchvision's suffixes, in any case.
- Hidden files and folders (`.name`), and those that operating systems leave behind (`SYSTEM`), are ignored.
- A link to a folder is followed only if that folder is not searched anyway: a link to a folder above, to another class,
  or a second link to the same folder adds nothing.
- What is left out is counted, by the reason.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePath

from torchvision.datasets.folder import IMG_EXTENSIONS

SUFFIXES: tuple[str, ...] = tuple(IMG_EXTENSIONS)

SYSTEM = frozenset(
    {
        "@eadir",
        "@recycle",
        "@tmp",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "__macosx",
        "network trash folder",
        "temporary items",
        "lost+found",
        "thumbs.db",
        "desktop.ini",
    }
)
"""Names that network drives, archives and file systems leave in folders, in lower case."""

DEEPEST = 64
"""Levels of folders that are searched."""

_SHOWN = 10
NO_FILES = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
"""What a path may lead to besides a regular file, by its `stat` kind."""

Identity = tuple[int, int]
"""A folder's device and inode."""


def left_out(name: str) -> str | None:
    """Why a file or folder of this name is ignored; `None` if it is not."""
    if name.startswith("."):
        return "hidden"
    return "of the system" if name.lower() in SYSTEM else None


def left_out_below(path: PurePath) -> str | None:
    """As `left_out`, for a path inside a folder or an archive: the reason for its first part that is ignored."""
    return next((reason for part in path.parts if (reason := left_out(part))), None)


def not_a_file(path: Path) -> str | None:
    """What a path leads to instead of a regular file (a broken link, a named pipe, …); `None` for a regular file."""
    kind = _kind(str(path))
    if kind is None:
        return "broken link"
    return None if kind == stat.S_IFREG else NO_FILES.get(kind, "special file")


def is_picture(name: str) -> bool:
    """Whether a file name has the suffix of a picture."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 – a million files


def as_text(name: str) -> str:
    r"""A file name as text to compare and to write: in Unicode's composed form, bytes that are not UTF-8 as `\xe9`."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))


def path_on_disk(path: str) -> str:
    """The path on the disk that equals a written one up to its Unicode form; the path itself if there is none."""
    forms = (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
    return next((form for form in forms if Path(form).is_file()), path)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without ignored ones. Raises `OSError` if it can't be read."""
    return sorted(entry for entry in folder.iterdir() if not left_out(entry.name) and entry.is_dir())


def counts_in_words(counts: Counter[str]) -> str:
    """Counts in words, the largest first: "3 hidden, 2 .txt"."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{count:,} {reason}" for reason, count in ordered[:_SHOWN])
    more = sum(count for _, count in ordered[_SHOWN:])
    return shown + (f" and {more:,} more" if more else "")


class Finder:
    """Finds the pictures below folders, and counts what it leaves out.

    Attributes:
        left_out: how many files and folders, by the reason: a suffix, "hidden", "broken link" and so on.
    """

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()

    def find(self, folders: Sequence[Path]) -> list[list[str]]:
        """The pictures below each folder, sorted by folder and name. Raises `OSError` if one can't be read."""
        found: list[list[str]] = [[] for _ in folders]
        searched: set[Identity] = set()
        links: list[tuple[int, str]] = []
        for number, folder in enumerate(folders):
            os.scandir(folder).close()
            links += [(number, link) for link in self._walk(str(folder), found[number], searched, again=True)]
        for folder in folders:
            searched |= _above(str(folder))
        while links:  # only now, so that a picture is found where it really is
            number, link = links.pop(0)
            if _identity(link) in searched:
                self.left_out["link to a folder that is searched anyway"] += 1
                continue
            searched |= _above(link)
            links += [(number, other) for other in self._walk(link, found[number], searched)]
        return [sorted(pictures, key=os.path.split) for pictures in found]

    def _walk(self, top: str, found: list[str], searched: set[Identity], *, again: bool = False) -> list[str]:
        """Add the pictures below a folder to `found` and its folders to `searched`; return the links to folders.

        With `again`, a folder that was searched before is searched once more: a tree without links has no circles.
        """
        links: list[str] = []
        waiting = [(top, 0)]
        while waiting:
            folder, depth = waiting.pop()
            identity = _identity(folder)
            if not again and identity in searched:
                continue
            searched.add(identity)
            try:
                entries = list(os.scandir(folder))
            except OSError:
                self.left_out["folder that may not be read"] += 1
                continue
            for entry in entries:
                if reason := left_out(entry.name):
                    self.left_out[reason] += 1
                elif entry.is_dir(follow_symlinks=False):
                    if depth < DEEPEST:
                        waiting.append((entry.path, depth + 1))
                    else:
                        self.left_out[f"folder more than {DEEPEST} deep"] += 1
                elif entry.is_symlink() and _kind(entry.path) == stat.S_IFDIR:
                    links.append(entry.path)
                elif refused := _refused(entry):
                    self.left_out[refused] += 1
                else:
                    found.append(entry.path)
        return sorted(links)


def _refused(entry: os.DirEntry[str]) -> str | None:
    """Why a file, or a link to one, is not a picture; `None` if it is."""
    if not entry.is_file(follow_symlinks=False) and (reason := not_a_file(Path(entry.path))):
        return reason
    if not is_picture(entry.name):
        return os.path.splitext(entry.name)[1].lower() or "without a suffix"  # noqa: PTH122
    return None


def _kind(path: str) -> int | None:
    """The `stat` kind of what a path leads to; `None` if it leads nowhere."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode)  # noqa: PTH116
    except OSError:
        return None


def _identity(folder: str) -> Identity:
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _above(folder: str) -> set[Identity]:
    """The folders above a folder, both along the path as given and along the resolved one."""
    found: set[Identity] = set()
    for path in {*Path(folder).absolute().parents, *Path(folder).resolve().parents}:
        with suppress(OSError):  # a folder that may not be looked at can't be searched either
            found.add(_identity(str(path)))
    return found
