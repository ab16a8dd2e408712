"""The verb `corrupt`: shifted copies of labelled images, written once to disk, for `evaluate --shift`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from attention_transfer.artifacts import CORRUPTED_MARKER, corrupted_record, replacing_problems
from attention_transfer.config.corrupt import Corrupt
from attention_transfer.data import FileImages, Split, load_data, read_image
from attention_transfer.data.corruptions import CORRUPTIONS, corrupted, fitted
from attention_transfer.data.splits import first_five
from attention_transfer.data.threads import in_threads
from attention_transfer.errors import UserError, nearest, raise_all
from attention_transfer.evaluation.masked_images import files_by_name
from attention_transfer.evaluation.masks import MaskFiles, MaskSequence, checked_mask
from attention_transfer.evaluation.subjects import spread
from attention_transfer.places import check_writable, expanded, folder_problems
from attention_transfer.ui import show_line
from attention_transfer.writing import whole_folder, write_whole

_QUALITY = 85  # of JPEG, as ImageNet-C is published
_FILE_KB = 60  # of a corrupted image, rather too much

_SUFFIX = {True: ".jpg", False: ".png"}  # of corrupted images, and of objects on other backgrounds
_OWN = re.compile(r"\d{6,}\.(jpg|png)")

Make = Callable[[int, Image.Image], Image.Image]
T = TypeVar("T")


@dataclass(frozen=True)
class CorruptedImages:
    """What `corrupt` wrote.

    Attributes:
        path: the folder.
        images: how many images were taken.
        kinds: what was done to each: corruptions, or "backgrounds".
        severities: how much of it; empty for backgrounds.
        files: how many were written.
    """

    path: Path
    images: int
    kinds: tuple[str, ...]
    severities: tuple[int, ...]
    files: int


def write_corrupted(config: Corrupt) -> CorruptedImages:
    """The verb `corrupt`."""
    target = expanded(config.out)
    kinds = list(CORRUPTIONS) if config.kinds == "all" else list(dict.fromkeys(_listed(config.kinds)))
    severities = [] if config.backgrounds else sorted({*_listed(config.severities)})
    raise_all(
        [f"there is no corruption {kind!r}; {nearest(kind, CORRUPTIONS)}" for kind in kinds if kind not in CORRUPTIONS]
        + _out_problems(target, config)
    )
    splits = load_data(config.data)
    split = splits.parts[config.split]
    split = split.take(spread(len(split), config.limit))
    raise_all(_class_problems(splits.classes))
    if config.backgrounds is None:
        plan: list[tuple[Path, Make]] = [
            (Path(kind, str(severity)), partial(_corrupt, kind, severity, config.seed))
            for kind in kinds
            for severity in severities
        ]
    else:
        kinds, plan = ["backgrounds"], [(Path(), _swapper(split, config.data, config))]
    check_writable(target, needed_mb=1 + len(split) * len(plan) * _FILE_KB // 1024)
    folders = kinds if severities else sorted({splits.classes[label] for label in split.labels})
    record = {"data": config.data, "split": config.split, "images": len(split), "seed": config.seed}
    record |= {"kinds": kinds, "severities": severities, "folders": folders}
    replaced = {CORRUPTED_MARKER, *folders, *corrupted_record(target).get("folders", ())}
    with whole_folder(target, [escape(name) for name in replaced]) as folder:
        folder.mkdir(parents=True)

        def write(index: int) -> None:
            image = split.images[index].convert("RGB")
            image = fitted(image) if severities else image
            for place, make in plan:
                file = folder / place / splits.classes[split.labels[index]] / f"{index:06d}{_SUFFIX[bool(severities)]}"
                file.parent.mkdir(parents=True, exist_ok=True)
                make(index, image).save(file, quality=_QUALITY)

        in_threads(write, range(len(split)), "writing shifted images")
        write_whole(folder / CORRUPTED_MARKER, json.dumps(record, indent=2) + "\n")
    files = len(split) * len(plan)
    show_line(
        f"{files:,} files of {len(split):,} images in {target}; judge models on them by evaluate --shift {target}"
    )
    return CorruptedImages(target, len(split), tuple(kinds), tuple(severities), files)


def _corrupt(kind: str, severity: int, seed: int, index: int, image: Image.Image) -> Image.Image:
    draw = np.random.default_rng((seed, list(CORRUPTIONS).index(kind), severity, index))
    return corrupted(image, kind, severity, draw)


def _swapper(split: Split, data: str, config: Corrupt) -> Make:
    """Puts an image's object on one of the photographs, cropped to the image's proportions from its middle."""
    assert config.backgrounds is not None
    photographs = list(files_by_name(expanded(config.backgrounds), "photographs").values())
    masks = _masks_of(split, data, config.masks)

    def swapped(index: int, image: Image.Image) -> Image.Image:
        mask = checked_mask(masks[index], image.size, index) != 0
        draw = np.random.default_rng((config.seed, index))
        photograph = read_image(str(photographs[draw.integers(len(photographs))])).convert("RGB")
        behind = ImageOps.fit(photograph, image.size, Image.Resampling.BICUBIC)
        return Image.composite(image, behind, Image.fromarray(mask.astype(np.uint8) * 255))

    return swapped


def _masks_of(split: Split, data: str, masks: str | None) -> MaskSequence:
    """The masks of a split: its own, or the files of the same names in another folder.

    Raises:
        UserError: there are none, or some are missing.
    """
    if masks is None and split.masks is not None:
        return split.masks
    if masks is None or not isinstance(split.images, FileImages):
        raise UserError(f"{data} has no masks to cut its objects out by; name the folder that holds them with --masks")
    drawn, home = files_by_name(expanded(masks), "masks"), expanded(data).resolve()
    names = [str(path.resolve().relative_to(home).with_suffix("")) for path in split.images.paths]
    if lost := [name for name in names if name not in drawn]:
        raise UserError(
            f"{len(lost)} of {len(names)} images have no mask of the same name in {masks}: {first_five(lost)}"
        )
    return MaskFiles([drawn[name] for name in names])


def _class_problems(classes: Sequence[str]) -> list[str]:
    return [
        f"class {name!r} can't be the name of a folder; rename it"
        for name in classes
        if name in (".", "..") or "/" in name or "\0" in name
    ]


def _out_problems(target: Path, config: Corrupt) -> list[str]:
    """Why the folder can't be written: others' files are in it, or it would be over what is read."""
    if target.is_file():
        return [f"{target} is a file; choose a folder with --out"]
    read = [place for place in (config.data, config.backgrounds, config.masks) if place is not None]
    problems = folder_problems(target, data=read)
    record = corrupted_record(target)
    if target.is_dir() and any(target.iterdir()):
        if not record:
            problems.append(f"{target} is not empty, and `corrupt` did not write it; choose another folder with --out")
        elif not config.overwrite:
            problems.append(f"{target} exists; choose another folder with --out, or replace it with --overwrite")
        else:
            problems += replacing_problems(target)
            inside = [file for name in record["folders"] for file in (target / name).rglob("*") if file.is_file()]
            problems += [
                f"{file} was not written by `corrupt`, and would be removed; move it elsewhere"
                for file in inside
                if not _OWN.fullmatch(file.name)
            ][:1]
    return problems


def _listed(value: T | list[T]) -> list[T]:
    return value if isinstance(value, list) else [value]
