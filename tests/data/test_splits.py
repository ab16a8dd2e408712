"""Cutting splits that are not published."""

from __future__ import annotations

import numpy as np
import pytest

from attention_transfer.data import ArrayImages, Split, Splits
from attention_transfer.data.splits import cut, make_splits
from attention_transfer.errors import UserError


def numbered(labels: list[int], first: int = 0) -> Split:
    """Images whose one pixel is their number."""
    pixels = np.arange(first, first + len(labels), dtype=np.uint8).reshape(-1, 1, 1)
    return Split(ArrayImages(pixels), np.array(labels, dtype=np.int64))


def numbers(split: Split) -> list[int]:
    assert isinstance(split.images, ArrayImages)
    return split.images.pixels.ravel().tolist()


@pytest.mark.parametrize("share", [0.2, 0.05, 0.9])
def test_every_image_is_on_one_side_and_each_class_gives_its_share(share: float) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [50, 100, 20, 1]))
    kept, off = cut(labels, share)
    assert sorted([*kept, *off]) == list(range(len(labels)))
    assert np.all(np.diff(kept) > 0)
    assert np.all(np.diff(off) > 0)
    assert np.bincount(labels[off], minlength=4).tolist() == [*(round(share * n) for n in (50, 100, 20)), 0]


def test_small_classes_keep_one_and_give_one() -> None:
    labels = np.array([0, 1, 1, 2, 2, 2])
    for share in (0.01, 0.99):
        kept, off = cut(labels, share)
        assert set(labels[kept]) == {0, 1, 2}
        assert set(labels[off]) == {1, 2}


def test_the_seed_decides_and_other_classes_do_not() -> None:
    labels = np.repeat([0, 1], 50)
    assert np.array_equal(cut(labels, 0.2, seed=3)[1], cut(labels, 0.2, seed=3)[1])
    assert not np.array_equal(cut(labels, 0.2, seed=3)[1], cut(labels, 0.2, seed=4)[1])
    alone = cut(labels[:50], 0.2)[1]
    assert np.array_equal(alone, [i for i in cut(labels, 0.2)[1] if i < 50])


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_out_of_bounds_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="above 0 and below 1"):
        cut(np.zeros(4, dtype=np.int64), share)


TRAIN, VALIDATION, TEST = numbered([0, 1] * 25), numbered([0, 1], 100), numbered([1, 0], 200)


def sizes(splits: Splits) -> list[int]:
    everything = [numbers(split) for split in (splits.train, splits.validation, splits.test)]
    assert len({n for split in everything for n in split}) == sum(map(len, everything)), "no image is in two splits"
    return [len(split) for split in everything]


def test_what_is_published_is_kept() -> None:
    splits = make_splits(
        "birds", ["a", "b"], {"train": TRAIN, "validation": VALIDATION, "test": TEST}, notes=["A note."]
    )
    assert (splits.train, splits.validation, splits.test) == (TRAIN, VALIDATION, TEST)
    assert (splits.name, splits.classes, splits.notes) == ("birds", ("a", "b"), ("A note.",))


def test_validation_is_cut_from_training() -> None:
    splits = make_splits("birds", ["a", "b"], {"train": TRAIN, "test": TEST})
    assert sizes(splits) == [40, 10, 2]
    assert splits.test is TEST
    assert np.bincount(splits.validation.labels).tolist() == [5, 5]
    assert splits.notes == ("The validation split is 20% of the training images, cut off by class.",)


def test_validation_is_the_test_split_where_there_is_none() -> None:
    splits = make_splits("birds", ["a", "b"], {"train": TRAIN, "validation": VALIDATION})
    assert splits.test is VALIDATION
    assert sizes(splits) == [40, 10, 2]
    assert splits.notes[0] == "The validation split is taken as the test split, because there is no other."


def test_both_are_cut_where_there_is_only_training() -> None:
    splits = make_splits("birds", ["a", "b"], {"train": TRAIN})
    assert sizes(splits) == [32, 8, 10]
    assert [len(note) > 0 for note in splits.notes] == [True, True]


def test_nothing_can_be_cut_from_single_images() -> None:
    with pytest.raises(UserError, match="birds has no class with two training images, so no test split can be cut off"):
        make_splits("birds", ["a", "b"], {"train": numbered([0, 1])})
