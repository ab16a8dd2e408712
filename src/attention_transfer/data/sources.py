"""Load a data set by its name or path: an embedded one, a folder, a table, shards, or one of another library."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attention_transfer.data.class_folders import is_flat, load_flat, load_folder
from attention_transfer.data.digits import digits
from attention_transfer.data.hub import load_hub
from attention_transfer.data.images import Splits
from attention_transfer.data.layouts import find_layout
from attention_transfer.data.scenes import character_scenes, digit_scenes, shifted_digit_scenes
from attention_transfer.data.shards import is_shards, load_shards
from attention_transfer.data.tables import SUFFIXES, load_table
from attention_transfer.data.torchvision_sets import load_torchvision
from attention_transfer.errors import UserError, nearest

DATA: dict[str, Callable[[], Splits]] = {
    "digits": digits,
    "digit-scenes": digit_scenes,
    "digit-scenes-shift": shifted_digit_scenes,
    "character-scenes": character_scenes,
}
"""Embedded data sets."""


@dataclass(frozen=True)
class DataSource:
    """A data set that was recognised.

    Attributes:
        title: what was recognised.
        load: loads the splits; its argument says whether damaged files are refused.
    """

    title: str
    load: Callable[[bool], Splits]


def load_data(spec: str, *, strict: bool = False, labelled: bool = True) -> Splits:
    """Load a data set.

    Args:
        spec: one of:

            - "digits", which is embedded (a folder of that name is "./digits");
            - a folder: the published layout of a known data set, class folders, or train, val and test with these;
            - a .csv or .tsv file with the columns path and label, and perhaps split;
            - tar files in WebDataset's form;
            - hf/<name or folder>: a data set of Hugging Face;
            - torchvision/<Name>[:root]: one of torchvision's.
        strict: refuse damaged image files instead of leaving them out.
        labelled: whether labels are needed; if not, a folder of images without class folders will do, too.

    Returns:
        The splits; `notes` says how they were made, `skipped` which files were left out.

    Raises:
        UserError: there is no such data set, or it can't be used; every mistake is listed.
    """
    place = Path(spec).expanduser()
    if not labelled and spec not in DATA and is_flat(place):
        return load_flat(place, strict=strict)
    return find_source(spec).load(strict)


def find_source(spec: str) -> DataSource:
    """Recognise a data set, without reading images.

    Raises:
        UserError: nothing is recognised; the nearest is named.
    """
    if spec in DATA:
        return DataSource("embedded", lambda _: DATA[spec]())
    library, name = spec.split("/", 1) if "/" in spec else ("", spec)
    if library == "hf":
        return DataSource("Hugging Face data set", lambda _: load_hub(name))
    if library == "torchvision":
        return DataSource("torchvision data set", lambda strict: load_torchvision(name, strict=strict))
    return _on_disk(spec, Path(spec).expanduser())


def data_slug(spec: str) -> str:
    """A short name for files and folders: "digits", "flowers" for /data/flowers/, "hf-food101" for hf/food101."""
    library = re.match(r"(hf|torchvision)/", spec)
    path = Path(spec)
    name = spec if library else path.stem if path.suffix.lower() in SUFFIXES else path.resolve().name
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "data"


def _on_disk(spec: str, path: Path) -> DataSource:
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return DataSource("table", lambda strict: load_table(path, strict=strict))
    if is_shards(path):
        return DataSource("tar shards", lambda _: load_shards(path))
    if not path.exists():
        raise UserError(_missing(spec, path))
    if (layout := find_layout(path)) is not None:
        return DataSource(layout.title, lambda strict: layout.load(path, strict=strict))
    if not path.is_dir():
        raise UserError(f"{path} is not a data set; name a folder, a .csv or .tsv file, or tar files")
    return DataSource("class folders", lambda strict: load_folder(path, strict=strict))


def _missing(spec: str, path: Path) -> str:
    if spec == path.name and not path.suffix:
        known = nearest(spec, DATA)
        end = "" if known.endswith("?") else "."
        return f"there is no data set {spec!r}; {known}{end} A folder, a .csv file, hf/… or torchvision/… work, too"
    kind = "file" if path.suffix else "folder"
    parent = path.absolute().parent
    if not parent.is_dir():
        return f"there is no {kind} {spec}, and no folder {parent}; check the path"
    close = difflib.get_close_matches(path.name, [entry.name for entry in parent.iterdir()], n=1)
    return f"there is no {kind} {spec}; " + (f"did you mean {path.parent / close[0]}?" if close else "check the path")
