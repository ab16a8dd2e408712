"""Index a tar file in WebDataset's form: positions and labels of its images. Nothing is ever extracted."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader, FileIO
from pathlib import Path, PurePosixPath

from attention_transfer.data.decoding import LARGEST_FILE
from attention_transfer.data.finder import is_picture, left_out_below
from attention_transfer.data.labels import LONGEST, label_of
from attention_transfer.errors import UserError, raise_all
from attention_transfer.text_files import Unsound, parse_json

Label = int | str
Place = tuple[int, int]
"""The offset of an image in its shard, and its size in bytes."""

_LABELS = ("cls", "json")
_LARGEST_LABEL = 2**20  # bytes; of JSON beside an image
_LARGEST_READ = 2**26  # bytes at once, of headers; a header may claim any number


@dataclass
class Index:
    """The images of a shard, in their order.

    Attributes:
        places: positions of the images.
        labels: their classes.
        dotted: keys with dots.
        left_out: how many members are ignored, by the reason.
    """

    places: list[Place]
    labels: list[Label]
    dotted: list[str]
    left_out: Counter[str]


@dataclass
class _Members:
    """Images and labels by their keys."""

    shard: Path
    places: dict[str, Place] = field(default_factory=dict)
    cls: dict[str, Label] = field(default_factory=dict)
    json: dict[str, Label] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, Label]:
        return self.json | self.cls

    def add(self, key: str, suffix: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        """Add a member whose suffix is that of an image or a label."""
        where = f"{member.name} in {self.shard}"
        if suffix in _LABELS:
            if member.size > _LARGEST_LABEL:
                raise UserError(f"{where} is not a label, for it has {member.size:,} bytes; write the shard again")
            content = tar.extractfile(member)
            label = _label(b"" if content is None else content.read(), suffix, where)
            if label is not None:
                getattr(self, suffix)[key] = label
        elif key in self.places:
            raise UserError(f"{self.shard} has two images {key}; give each image a key of its own")
        elif member.size > LARGEST_FILE:
            raise UserError(f"{where} is too large ({member.size:,} bytes); make it smaller")
        else:
            self.places[key] = (member.offset_data, member.size)


def index_shard(shard: Path) -> Index:
    """Find the images of a shard and their labels.

    A key ends at the first dot of a name, as in WebDataset. If the rest is not a suffix but the end is, the name is
    divided at the last dot, provided that the image has a label then; otherwise it is ignored, like a mask beside an
    image.

    Raises:
        UserError: it is no tar file, or compressed or damaged, or images have no labels.
    """
    members, others = _Members(shard), Counter[str]()
    dotted: dict[str, list[tuple[str, tarfile.TarInfo]]] = {}
    with _opened(shard) as tar:
        for member in tar:
            if member.isdir():
                continue
            if reason := _left_out(member):
                others[reason] += 1
                continue
            folder, slash, name = member.name.rpartition("/")
            first, _, rest = name.partition(".")
            last, _, suffix = name.rpartition(".")
            if _is_known(rest):
                members.add(folder + slash + first, rest.lower(), member, tar)
            elif _is_known(suffix):
                dotted.setdefault(folder + slash + last, []).append((suffix.lower(), member))
            else:
                others[f".{suffix.lower()}" if last else "without a suffix"] += 1
        whole = [key for key, found in dotted.items() if len({suffix in _LABELS for suffix, _ in found}) == 2]
        for key in whole:
            for suffix, member in dotted[key]:
                members.add(key, suffix, member, tar)
    if single := sum(len(found) for key, found in dotted.items() if key not in {*whole}):
        others["with a further dot in the name, and not both image and label"] += single
    places, labels = members.places, members.labels
    _check(shard, places, labels, others)
    return Index(list(places.values()), [labels[key] for key in places], whole, others)


def member_at(shard: Path, start: int) -> str:
    """The name of a member; looked up only if something is wrong with it, for a million names would fill memory."""
    with _opened(shard) as tar:
        return next((member.name for member in tar if member.offset_data == start), f"byte {start}")


@contextmanager
def _opened(shard: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar file; any error while it is read becomes a `UserError`."""
    try:
        with _Bounded(FileIO(shard)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            yield tar
    except UserError:
        raise
    except Exception as error:  # headers of thousands of headers, numbers that are none, and so on
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{shard} can't be read as a tar file without compression ({reason}); decompress it, or download it again"
        ) from error


class _Bounded(BufferedReader):
    """A file that refuses to read more at once than a sound header would ask for."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _LARGEST_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _left_out(member: tarfile.TarInfo) -> str | None:
    """Why a member is ignored, whatever its name is; `None` if it is not."""
    if not member.isfile() or member.issparse():
        return "link" if member.issym() or member.islnk() else "sparse file" if member.issparse() else "special file"
    return left_out_below(PurePosixPath(member.name))


def _is_known(suffix: str) -> bool:
    return suffix.lower() in _LABELS or (is_picture(f"x.{suffix}") and "." not in suffix)


def _check(shard: Path, places: dict[str, Place], labels: dict[str, Label], others: Counter[str]) -> None:
    unlabelled = [key for key in places if key not in labels]
    without = [key for key in labels if key not in places]
    problems = []
    if not places:
        found = f", but {sum(others.values()):,} others" if others else ""
        problems.append(
            f"{shard} holds no images{found}; a shard has members key.jpg and key.cls, or key.json with a label"
        )
    if unlabelled:
        problems.append(
            f"{len(unlabelled)} of {len(places)} images in {shard} have no key.cls, and no key.json with a label "
            f"({', '.join(unlabelled[:5])}); make the shard with labels"
        )
    if places and without:
        problems.append(f"{len(without)} labels in {shard} have no image ({', '.join(without[:5])}); write it again")
    raise_all(problems)


def _label(content: bytes, suffix: str, where: str) -> Label | None:
    """A class number or name; `None` for a JSON file without a label."""
    try:
        text = content.decode().strip()
        label = parse_json(text) if suffix == "json" else text
    except (Unsound, UnicodeDecodeError) as error:
        raise UserError(f"{where} is damaged ({error}); write the shard again") from error
    if suffix == "json":
        label = label.get("label") if isinstance(label, dict) else None
        if label is None:
            return None
        if not isinstance(label, int | str) or isinstance(label, bool):
            raise UserError(
                f"{where} has the label {str(label)[:80]}; it must be the number or the name of one class, for several "
                "labels an image and measurements are not supported"
            )
    elif not text:
        raise UserError(f"{where} is empty; write the class into it")
    name = label_of(str(label))
    if len(name) > LONGEST:
        raise UserError(f"{where} has a label of {len(name):,} characters; write the name or the number of a class")
    return int(name) if suffix == "cls" and re.fullmatch(r"-?\d+", name) else label if isinstance(label, int) else name
