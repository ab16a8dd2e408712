from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from attention_transfer.data import Split, Splits, digits, load_data
from attention_transfer.errors import UserError


@pytest.fixture(scope="module")
def splits() -> Splits:
    return digits()


def pixels(split: Split) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.stack([np.asarray(split.images[i]) for i in range(len(split))])


def test_sizes_and_classes(splits: Splits) -> None:
    assert [len(split.labels) for split in (splits.train, splits.validation, splits.test)] == [1077, 270, 450]
    assert splits.classes == tuple("0123456789")
    assert pixels(splits.train).shape == (1077, 8, 8)
    assert pixels(splits.train).dtype == np.uint8
    assert splits.train.labels.dtype == np.int64


def test_the_splits_are_the_whole_data_set_and_share_no_image(splits: Splits) -> None:
    bunch = load_digits()
    everything = Counter(zip((row.tobytes() for row in bunch.images), bunch.target.tolist(), strict=True))
    parts: Counter[tuple[bytes, int]] = Counter()
    for split in (splits.train, splits.validation, splits.test):
        sixteenths = np.round(pixels(split) * (16 / 255)).astype(np.float64)  # back to scikit-learn's 0 to 16
        parts.update(zip((row.tobytes() for row in sixteenths), split.labels.tolist(), strict=True))
    assert parts == everything
    assert max(everything.values()) == 1  # no image is there twice, so that equal counters mean disjoint splits


def test_every_class_has_its_share_in_every_split(splits: Splits) -> None:
    total = np.bincount(load_digits().target)
    for split in (splits.train, splits.validation, splits.test):
        expected = total * (len(split.labels) / 1797)
        assert np.abs(np.bincount(split.labels) - expected).max() <= 1.5


def test_the_cut_is_always_the_same(splits: Splits) -> None:
    again = digits()
    assert np.array_equal(again.train.labels, splits.train.labels)
    assert np.array_equal(pixels(again.test), pixels(splits.test))


def test_a_data_set_is_found_by_name_and_an_unknown_one_refused_with_the_nearest(splits: Splits) -> None:
    assert np.array_equal(load_data("digits").test.labels, splits.test.labels)
    with pytest.raises(UserError, match="no data set 'digit'; did you mean 'digits'"):
        load_data("digit")
