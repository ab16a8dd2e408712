"""PASCAL VOC 2012: photographs with objects of 20 classes marked pixel by pixel; for segmentation and inspection.

Source: M. Everingham, L. Van Gool, C. K. I. Williams, J. Winn and A. Zisserman, The PASCAL Visual Object Classes
Challenge 2012.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attention_transfer.data.layouts.layout import Layout, Published
from attention_transfer.data.layouts.official_files import check_there, folder_with, read_lines
from attention_transfer.errors import UserError

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""Classes in the order of the masks' values."""

VOC_VOID = 255
"""Value of pixels at borders and of hard objects, which count for nothing."""


def voc_segmentation(path: Path, split: Literal["train", "val", "trainval"]) -> list[tuple[Path, Path]]:
    """Images of a split of the segmentation task, each with its mask (values: `VOC_CLASSES`, and `VOC_VOID`).

    Raises:
        UserError: the folder does not hold VOC 2012, or files are missing.
    """
    home = VOC.home(path)
    source = home / "ImageSets" / "Segmentation" / f"{split}.txt"
    names = read_lines(source)
    images = [home / "JPEGImages" / f"{name}.jpg" for name in names]
    masks = [home / "SegmentationClass" / f"{name}.png" for name in names]
    for files in (images, masks):
        check_there(files, source)
    return list(zip(images, masks, strict=True))


def read_voc(home: Path) -> Published:
    """Refuses: an image shows several classes.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{home} holds {VOC.title}, whose images show several classes each; it serves segmentation and inspection, "
        "and can't be trained on with one label an image"
    )


def _find(path: Path) -> Path | None:
    marks = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "Annotations")
    home = folder_with(*marks, least=3, inside=("VOC2012", "VOCdevkit/VOC2012"))(path)
    # The layout of the other years is the same; the list of the 2012 segmentation task has images of 2007 to 2011.
    return home if home is not None and home.resolve().name == "VOC2012" else None


VOC = Layout(
    name="voc2012",
    title="PASCAL VOC 2012",
    find=_find,
    read=read_voc,
    masks=lambda home: dict(voc_segmentation(home, "trainval")),
    foreground=lambda values: (values > 0) & (values < VOC_VOID),
    segmentation=voc_segmentation,
)
