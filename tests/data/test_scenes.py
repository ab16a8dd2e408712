"""Figures on photographs: the same for everyone, disjoint between splits, with masks that are where the figure is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.data import Split, Splits, digits, load_data
from attention_transfer.data import scenes as module
from attention_transfer.data.images import ArrayImages

ORDER = np.random.default_rng(0).permutation(450)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_data("digit-scenes")


def pixels(split: Split) -> NDArray[np.uint8]:
    assert isinstance(split.images, ArrayImages)
    return split.images.pixels


def masks(split: Split) -> NDArray[np.bool_]:
    assert split.masks is not None
    return split.masks


def test_each_digit_is_on_one_photograph_in_its_own_split(splits: Splits) -> None:
    plain = digits()
    for scenes, alone in (
        (splits.train, plain.train),
        (splits.validation, plain.validation),
        (splits.test, plain.test),
    ):
        assert np.array_equal(scenes.labels, alone.labels)
        assert pixels(scenes).shape == (len(alone), 48, 48, 3)
        assert masks(scenes).shape == (len(alone), 48, 48)
    assert splits.classes == plain.classes


def test_no_photograph_is_in_two_splits() -> None:
    names = [name for part in module._PHOTOGRAPHS.values() for name in part]
    assert len(names) == len(set(names)) == 10


def test_the_scenes_are_always_the_same_and_do_not_hang_on_how_many_there_are(splits: Splits) -> None:
    few = module._of_digits("test", digits().test.take(np.arange(5)))
    assert np.array_equal(pixels(few), pixels(splits.test)[:5])
    assert np.array_equal(masks(few), masks(splits.test)[:5])


def test_a_sign_is_dark_on_the_grid_with_a_light_figure_and_its_mask_is_where_it_is(splits: Splits) -> None:
    for pixels_HWC, mask in zip(pixels(splits.test), masks(splits.test), strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask.sum() == len(rows) * len(columns) == 24 * 24
        assert rows[0] % 8 == columns[0] % 8 == 0
        sign = pixels_HWC[mask].astype(float) @ np.array([0.299, 0.587, 0.114])
        assert sign.min() < 96
        assert sign.max() > 190


def test_what_is_outside_the_sign_is_a_piece_of_the_photograph(splits: Splits) -> None:
    plain = digits().test
    other = module._of_digits("test", replace(plain, labels=plain.labels, images=plain.images.take(ORDER)))
    same = ~(masks(splits.test) | masks(other))
    assert np.array_equal(pixels(splits.test)[same], pixels(other)[same])
    assert not np.array_equal(pixels(splits.test), pixels(other))


def test_a_shifted_background_tells_the_class_but_not_in_the_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_piece", lambda photograph, _: Image.new("RGB", (48, 48), photograph))
    names: list[str] = []

    def photograph(name: str) -> str:
        names.append(name)
        return "black"

    monkeypatch.setattr(module, "_photograph", photograph)
    plain, chosen = digits(), dict[str, list[str]]()
    for part, split in plain.parts.items():
        module._of_digits(part, split, shifted=True)
        chosen[part] = [*names]
        names.clear()
    own = [name for names in module._PHOTOGRAPHS.values() for name in names]
    share = {
        part: np.mean([name == own[label] for name, label in zip(chosen[part], split.labels, strict=True)])
        for part, split in plain.parts.items()
    }
    assert share["train"] == pytest.approx(0.8 + 0.2 / 10, abs=0.03)
    assert share["validation"] == pytest.approx(0.8 + 0.2 / 10, abs=0.06)
    assert share["test"] == pytest.approx(0.1, abs=0.04)
    assert set(chosen["test"]) == set(own)


def test_shifted_scenes_are_the_same_digits_with_masks(splits: Splits) -> None:
    shifted = load_data("digit-scenes-shift")
    assert np.array_equal(shifted.test.labels, splits.test.labels)
    assert masks(shifted.test).sum(axis=(1, 2)).tolist() == [24 * 24] * 450
    assert not np.array_equal(pixels(shifted.test), pixels(splits.test))


def test_masks_go_with_the_images_that_are_taken(splits: Splits) -> None:
    taken = splits.test.take(np.array([7, 3]))
    assert np.array_equal(masks(taken), masks(splits.test)[[7, 3]])
    assert digits().test.take(np.array([1])).masks is None


def test_characters_are_all_there_and_differ_by_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_A_CHARACTER", {"train": 3, "validation": 1, "test": 1})
    characters = module.character_scenes()
    assert characters.classes == tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert np.bincount(characters.train.labels).tolist() == [3] * 36
    assert all(mask.any() for mask in masks(characters.train))
    shapes = {module._printed("R", font, np.random.default_rng(0)).tobytes() for font in module._FONTS}
    assert len(shapes) == len(module._FONTS)
