"""Attention over several images on one sheet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from attention_transfer.data import Placement
from attention_transfer.viewing import SheetRow, attention_sheet, save_sheet

BLACK = Image.new("L", (8, 8))
WHOLE = Placement((8, 8), (2, 2), (0, 0, 8, 8))
PATCHES = np.array([[0.1, 0.2], [0.3, 0.4]], dtype=np.float32)


def tiles(sheet: Image.Image, rows: int, columns: int) -> list[list[np.ndarray]]:
    """The squares of a sheet of black images, from the right bottom; all rows of one image."""
    pixels = np.asarray(sheet.convert("RGB")).astype(int)
    side, step = 112, 118
    bottom, right = pixels.shape[0] - 6, pixels.shape[1] - 6
    return [
        [
            pixels[bottom - y * step - side : bottom - y * step, right - x * step - side : right - x * step]
            for x in reversed(range(columns))
        ]
        for y in reversed(range(rows))
    ]


def test_the_most_attended_patch_is_brightest() -> None:
    sheet = attention_sheet([SheetRow("student", BLACK, WHOLE, [PATCHES, PATCHES.T * 5, None])], ["a", "b", "c"])
    ((image, first, second, none),) = tiles(sheet, 1, 4)
    assert not image.any()
    assert not none.any()
    corners = [(first[y, x].sum(), second[x, y].sum()) for y, x in ((5, 5), (5, 100), (100, 5), (100, 100))]
    assert [one for one, _ in corners] == sorted({one for one, _ in corners})
    assert all(one == other for one, other in corners)  # each tile is scaled by itself


def test_a_sheet_has_a_row_a_network_and_a_column_a_layer() -> None:
    """Each patch covers the pixels that it was cut from, in the colours of its own tile."""
    maps = {name: np.roll(np.eye(4, dtype=np.float32), turn, axis=1) for turn, name in enumerate(("teacher", "copy"))}
    rows = [
        SheetRow(f"{name}, says 3", BLACK, replace(WHOLE, grid=(4, 4)), [patches, patches.T, patches])
        for name, patches in maps.items()
    ]
    shown = tiles(attention_sheet(rows, ["layer 1", "layer 2", "layer 3"]), 2, 4)
    for line, patches in zip(shown, maps.values(), strict=True):
        assert not line[0].any(), "the image alone comes first"
        for tile, expected in zip(line[1:], (patches, patches.T, patches), strict=True):
            bright = tile.sum(axis=-1).reshape(4, 28, 4, 28)
            assert ((bright > bright.min()) == (expected > 0)[:, None, :, None]).all()


def test_rows_of_another_image_stand_apart() -> None:
    same = [SheetRow(label, BLACK, WHOLE, [PATCHES]) for label in ("student", "teacher")]
    other = [same[0], SheetRow("teacher", BLACK.copy(), WHOLE, [PATCHES])]
    assert attention_sheet(other, ["a"]).height == attention_sheet(same, ["a"]).height + 12


def test_images_keep_their_shape_and_colour() -> None:
    image = np.zeros((300, 600, 3), dtype=np.uint8)
    image[..., 0] = 200
    flat = np.full((3, 6), 0.1, dtype=np.float32)
    whole = Placement((600, 300), (3, 6), (0, 0, 600, 300))
    sheet = np.asarray(attention_sheet([SheetRow("student", Image.fromarray(image), whole, [flat])], ["a"]))
    red = (sheet == [200, 0, 0]).all(axis=-1)
    assert (red.any(axis=0).sum(), red.any(axis=1).sum()) == (192, 96)


def test_what_was_cropped_is_shaded() -> None:
    middle = Placement((80, 40), (2, 2), (20, 0, 60, 40))
    tile = np.asarray(attention_sheet([SheetRow("", Image.new("RGB", (80, 40), "red"), middle, [PATCHES])], ["a"]))
    red, faint = ((tile == colour).all(axis=-1) for colour in ([255, 0, 0], [241, 169, 169]))
    assert (red.any(axis=0).sum(), red.any(axis=1).sum()) == (56, 56)
    assert faint.sum() == 56 * 56


def test_a_sheet_is_written_whole(tmp_path: Path) -> None:
    sheet = attention_sheet([SheetRow("student", BLACK, WHOLE, [PATCHES])], ["a"])
    for _ in range(2):
        path = save_sheet(sheet, tmp_path / "new" / "attention.png")
    assert [p.name for p in path.parent.iterdir()] == ["attention.png"]
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(sheet))
