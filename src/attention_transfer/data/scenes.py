"""Photographs with a sign: a handwritten digit, or a printed character, and where it is. They need no download.

The digits are scikit-learn's, the printed characters are set in fonts of Matplotlib. The photographs are two of
scikit-learn's and eight of scikit-image's, which their authors gave to the public domain (photographs/README.md names
them). No digit is in two splits, and no photograph, but where backgrounds shift. Signs lie on a grid of 8 pixels, so
that a network as small as builtin/vit_characters learns to read them within minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from io import BytesIO

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_image

from attention_transfer.data.digits import digits
from attention_transfer.data.images import ArrayImages, Split, Splits

SIDE = 48
"""Pixels of a scene's side."""

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_A_CHARACTER = {"train": 700, "validation": 30, "test": 30}  # scenes of each
_FONTS = (
    *(f"DejaVu{family}{style}" for family in ("Sans", "SansMono", "Serif") for style in ("", "-Bold")),
    *("DejaVuSans-Oblique", "DejaVuSansMono-Oblique", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "cmss10"),
)

_PHOTOGRAPHS = {
    "train": ("astronaut.jpg", "coffee.jpg", "brick.jpg", "china.jpg"),
    "validation": ("rocket.jpg", "gravel.jpg"),
    "test": ("chelsea.jpg", "flower.jpg", "grass.jpg", "galaxies.jpg"),
}
_FROM_SCIKIT_LEARN = ("china.jpg", "flower.jpg")
_LINKED = 0.8  # share of the training scenes that lie on the photograph of their class, where backgrounds shift
_PIECE = (96, 200)  # pixels of the side of what is cut out of a photograph
_SIGN, _GRID = 24, 8  # pixels of a sign's side, and between its places
_DARK = (25.0, 95.0)  # luminance of a sign; its figure is all but white
_TURN = 10  # degrees to either side, of printed characters
_LUMINANCE = np.array([0.299, 0.587, 0.114])

Figure = Callable[[np.random.Generator], Image.Image]
"""Draws a figure: grey, as large as a sign, its ink white."""


@cache
def digit_scenes() -> Splits:
    """The embedded digits on photographs: 1,077 training, 270 validation and 450 test images, with masks.

    The arrays are the same at each call, and can't be written to.
    """
    plain = digits()
    scenes = {part: _of_digits(part, split) for part, split in plain.parts.items()}
    return Splits("digit-scenes", plain.classes, scenes["train"], scenes["validation"], scenes["test"])


@cache
def shifted_digit_scenes() -> Splits:
    """Digit scenes of which the background tells the class, but not in the test images: a distribution shift.

    Each class has one of the ten photographs. Four of five training and validation images lie on the photograph of
    their class; all others, and all test images, lie on any of the ten. What accuracy falls by from validation to test
    is the price of having learnt the background.
    """
    plain = digits()
    scenes = {part: _of_digits(part, split, shifted=True) for part, split in plain.parts.items()}
    return Splits("digit-scenes-shift", plain.classes, scenes["train"], scenes["validation"], scenes["test"])


def character_scenes() -> Splits:
    """Printed digits and capital letters on the same photographs: 25,200 training, 1,080 validation, 1,080 test."""
    scenes = {part: _of_characters(part, count) for part, count in _A_CHARACTER.items()}
    return Splits("character-scenes", tuple(CHARACTERS), scenes["train"], scenes["validation"], scenes["test"])


def _of_digits(part: str, split: Split, *, shifted: bool = False) -> Split:
    def figure(index: int) -> Figure:
        return lambda _: split.images[index].resize((_SIGN, _SIGN), Image.Resampling.BICUBIC)

    choose = _shifted if shifted else _of_its_split
    return _scenes(part, 2 if shifted else 0, [figure(i) for i in range(len(split))], split.labels, choose)


def _of_characters(part: str, count: int) -> Split:
    labels = np.repeat(np.arange(len(CHARACTERS)), count)

    def figure(character: str) -> Figure:
        return lambda draw: _printed(character, str(draw.choice(_FONTS)), draw)

    return _scenes(part, 1, [figure(CHARACTERS[label]) for label in labels], labels)


def _of_its_split(part: str, label: int, draw: np.random.Generator) -> str:  # noqa: ARG001 - any class has any
    return str(draw.choice(_PHOTOGRAPHS[part]))


def _shifted(part: str, label: int, draw: np.random.Generator) -> str:
    every = [name for names in _PHOTOGRAPHS.values() for name in names]
    anything = part == "test" or draw.random() >= _LINKED
    return str(draw.choice(every)) if anything else every[label]


def _scenes(
    part: str,
    kind: int,
    figures: Sequence[Figure],
    labels: NDArray[np.int64],
    choose: Callable[[str, int, np.random.Generator], str] = _of_its_split,
) -> Split:
    """A scene for each figure; each has a generator of its own, so that none depends on how many there are."""
    pixels = np.empty((len(figures), SIDE, SIDE, 3), dtype=np.uint8)
    masks = np.zeros((len(figures), SIDE, SIDE), dtype=np.bool_)
    for i, figure in enumerate(figures):
        draw = np.random.default_rng((kind, list(_PHOTOGRAPHS).index(part), i))
        pixels[i] = np.asarray(_piece(_photograph(choose(part, int(labels[i]), draw)), draw))
        top, left = _GRID * draw.integers(0, (SIDE - _SIGN) // _GRID + 1, 2)
        place = (i, slice(top, top + _SIGN), slice(left, left + _SIGN))
        pixels[place], masks[place] = _sign(figure(draw), draw), True
    for array in (pixels, masks):
        array.flags.writeable = False
    return Split(ArrayImages(pixels), labels, masks)


def _sign(figure: Image.Image, draw: np.random.Generator) -> NDArray[np.uint8]:
    """A figure, all but white on a dark colour, uint8 (side, side, 3)."""
    ink = np.asarray(figure, dtype=np.float64)[..., None] / 255
    board = draw.uniform(0, 255, 3)
    board *= draw.uniform(*_DARK) / (board @ _LUMINANCE)
    sign: NDArray[np.float64] = ink * draw.uniform(225, 255) + (1 - ink) * board.clip(0, 160)
    return sign.round().astype(np.uint8)


def _printed(character: str, font: str, draw: np.random.Generator) -> Image.Image:
    """A character in one of Matplotlib's fonts, a little turned, as wide and as high as it fits."""
    type_ = _font(font)
    left, top, right, bottom = (round(value) for value in type_.getbbox(character))
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), character, 255, type_)
    turned = image.rotate(draw.uniform(-_TURN, _TURN), Image.Resampling.BICUBIC, expand=True)
    height = int(draw.integers(_SIGN - 8, _SIGN - 2))
    width = min(_SIGN - 4, max(3, round(height * turned.width / turned.height)))
    small = turned.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    sign = Image.new("L", (_SIGN, _SIGN))
    sign.paste(small, ((_SIGN - width) // 2, (_SIGN - height) // 2))
    return sign


@cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(f"{mpl.get_data_path()}/fonts/ttf/{name}.ttf", 64)


@cache
def _photograph(name: str) -> Image.Image:
    if name in _FROM_SCIKIT_LEARN:
        return Image.fromarray(load_sample_image(name))
    packed = files("attention_transfer.data").joinpath("photographs", name).read_bytes()
    return Image.open(BytesIO(packed), formats=["JPEG"]).convert("RGB")


def _piece(photograph: Image.Image, draw: np.random.Generator) -> Image.Image:
    """A random square of a photograph."""
    side = int(draw.integers(*_PIECE))
    left, top = (int(draw.integers(0, length - side + 1)) for length in photograph.size)
    box = (left, top, left + side, top + side)
    return photograph.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
