"""Images with masks: embedded scenes, published layouts, and a folder of images with a folder of masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attention_transfer.config.choices import SplitName
from attention_transfer.data import DATA, FileImages, Images, find_source, load_data
from attention_transfer.data.finder import Finder
from attention_transfer.data.layouts import Layout, find_layout, read_mask
from attention_transfer.data.splits import SPLIT_NAMES, first_five
from attention_transfer.data.threads import in_threads
from attention_transfer.errors import UserError, raise_all
from attention_transfer.evaluation.masks import VOID, MaskFiles, MaskSequence
from attention_transfer.evaluation.subjects import spread

Void = int | Literal["none"] | None
WithMasks = tuple[Images, MaskSequence]


@dataclass(frozen=True)
class LayoutMasks:
    """Masks of a published data set whose files need its own reading: True is the object."""

    layout: Layout
    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> NDArray[np.bool_]:
        return read_mask(self.layout, self.paths[index])


@dataclass(frozen=True)
class MaskedImages:
    """Images to hold attention against.

    Attributes:
        images: at any sizes.
        masks: of the same sizes.
        training: other images and masks, on which head and box are chosen; `None` where there are none.
        void: value of pixels that belong to nothing; `None` where there are none.
    """

    images: Images
    masks: MaskSequence
    training: WithMasks | None
    void: int | None


def load_masked(
    data: str, masks: str | None, split: SplitName, *, limit: int | None, training: int, void: Void
) -> MaskedImages:
    """Load images with masks, and check every mask before a network sees one.

    Args:
        data: an embedded data set or a published layout that has masks; or a folder of images.
        masks: for a folder of images, that of the masks, with the same names but for the suffix.
        split: which images; "test" is the validation split of PASCAL VOC, whose test masks are not published.
        limit: how many of them; `None` for all.
        training: how many images to choose head and box on.
        void: value of pixels that count for nothing; `None` for the data set's own.

    Raises:
        UserError: there are no masks, they are all empty, in colour, or not of their images' sizes (each is named).
    """
    found, chosen, own_void = _known(data, split) if masks is None else (*_beside(data, masks, split), None)
    pair = _taken(found, limit)
    learnt = None if chosen is None or not training else _taken(chosen, training)
    meant = own_void if void is None else None if void == "none" else void
    for each in (pair, learnt):
        if each is not None:
            _check(each, data, meant, asked=void is not None or masks is None)
    return MaskedImages(*pair, learnt, meant)


def _taken(pair: WithMasks, limit: int | None) -> WithMasks:
    images, masks = pair
    which = spread(len(images), limit)
    if isinstance(masks, np.ndarray):
        return images.take(which), masks[which]
    if isinstance(masks, MaskFiles):
        return images.take(which), MaskFiles([masks.paths[i] for i in which])
    assert isinstance(masks, LayoutMasks)
    return images.take(which), LayoutMasks(masks.layout, [masks.paths[i] for i in which])


def _known(data: str, split: SplitName) -> tuple[WithMasks, WithMasks | None, int | None]:
    """Images and masks of a data set; those of its training split, if it is another; and its void value."""
    path = Path(data).expanduser()
    layout = find_layout(path) if data not in DATA and path.exists() else None
    if layout is not None and layout.segmentation is not None:
        read = layout.segmentation
        home = layout.home(path)
        pairs = {part: read(home, part) for part in ("train", "val")}
        of = {part: (FileImages(a for a, _ in each), MaskFiles([b for _, b in each])) for part, each in pairs.items()}
        return (of["train"], None, VOID) if split == "train" else (of["val"], of["train"], VOID)
    if layout is not None and layout.masks is not None:
        by_image, parts = layout.masks(layout.home(path)), layout.load(path).parts
        pairs_of = {part: _with_masks(each.images, by_image, layout) for part, each in parts.items()}
        return pairs_of[split], None if split == "train" else pairs_of["train"], None
    find_source(data)  # which says it best where there is no such data set
    known = load_data(data).parts if data in DATA else {}
    if not known or any(each.masks is None for each in known.values()):
        raise UserError(
            f"{data} has no masks; name the folder that holds them with --masks, or choose digit-scenes, "
            "character-scenes, or the folder of PASCAL VOC 2012, CUB-200-2011 or Oxford-IIIT Pets"
        )
    embedded = {part: (each.images, each.masks) for part, each in known.items() if each.masks is not None}
    return embedded[split], None if split == "train" else embedded["train"], None


def _with_masks(images: Images, by_image: dict[Path, Path], layout: Layout) -> WithMasks:
    assert isinstance(images, FileImages)
    paths = [path for path in images.paths if path in by_image]
    return FileImages(paths), LayoutMasks(layout, [by_image[path] for path in paths])


def _beside(data: str, masks: str, split: SplitName) -> tuple[WithMasks, WithMasks | None]:
    """The images of a folder with their masks, of the same names in another folder; those of its training split, too.

    A folder without folders of splits is one set, which is looked at whole.
    """
    pictures = files_by_name(Path(data).expanduser(), "images")
    drawn = files_by_name(Path(masks).expanduser(), "masks")
    if lost := sorted(pictures.keys() - drawn.keys()):
        raise UserError(
            f"{len(lost)} of the {len(pictures)} images in {data} have no mask of the same name in {masks}: "
            f"{first_five(lost)}; add these, or take the images out"
        )
    parts: dict[str | None, list[str]] = {}
    for name in sorted(pictures):
        top = "".join(Path(name).parent.parts[:1])
        parts.setdefault(SPLIT_NAMES.get(top.lower()), []).append(name)
    if None in parts:  # some image is in no split
        if split != "test":
            raise UserError(f"{data} has images outside of the folders train, val and test; leave --split out")
        parts = {"test": sorted(pictures)}
    if split not in parts:
        raise UserError(f"{data} has no {split} split, but {' and '.join(map(str, parts))}; choose one with --split")
    of = {
        part: (FileImages(pictures[name] for name in names), MaskFiles([drawn[name] for name in names]))
        for part, names in parts.items()
    }
    return of[split], None if split == "train" else of.get("train")


def files_by_name(folder: Path, what: str) -> dict[str, Path]:
    """The pictures below a folder, by their paths in it without suffixes."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} of {what}; check the path")
    (files,) = Finder().find([folder])
    found: dict[str, Path] = {}
    for file in map(Path, files):
        name = str(file.relative_to(folder).with_suffix(""))
        if name in found:
            raise UserError(f"{found[name]} and {file} have the same name; keep one of them")
        found[name] = file
    if not found:
        raise UserError(f"the folder {folder} holds no {what}; name another")
    return found


def _check(pair: WithMasks, data: str, void: int | None, *, asked: bool) -> None:
    """Refuse masks that say nothing, or that may mean two things."""
    images, masks = pair

    def look(index: int) -> tuple[str | None, frozenset[int]]:
        try:
            mask: NDArray[Any] = masks[index]
        except UserError as error:
            return str(error), frozenset()
        width, height = images[index].size
        if mask.shape != (height, width):
            name = masks.paths[index] if isinstance(masks, MaskFiles | LayoutMasks) else f"mask {index} of {data}"
            shape = "×".join(map(str, mask.shape))
            return f"{name} is {shape}, but its image is {height}×{width} (height × width); resize one", frozenset()
        return None, frozenset(np.unique(mask).astype(int).tolist())

    looked = in_threads(look, range(len(images)), "checking masks")
    raise_all([problem for problem, _ in looked if problem is not None])
    values = frozenset[int]().union(*(found for _, found in looked))
    objects = values - {0, void}
    if not objects:
        marks = "0 (background)" if void is None else f"0 (background) and {void} (void)"
        raise UserError(
            f"all {len(images)} masks of {data} are empty: they hold {marks} alone; check them, or set --void"
        )
    if not asked and VOID in objects and len(objects) > 1:
        raise UserError(
            f"the masks hold {VOID} besides {first_five(sorted(objects - {VOID}))}; say --void {VOID} if it marks "
            "pixels that count for nothing, or --void none if it is an object"
        )
