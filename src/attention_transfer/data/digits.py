"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels, in the wheel, so that nothing is downloaded.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from attention_transfer.data.images import ArrayImages, Split, Splits

TEST_SHARE = 0.25
VALIDATION_SHARE = 0.20  # of what is not test


def digits() -> Splits:
    """The digits, cut once and for all, stratified by class: 1,077 training, 270 validation and 450 test images."""
    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    everything = np.arange(len(labels))
    rest, test = train_test_split(everything, test_size=TEST_SHARE, stratify=labels, random_state=0)
    train, validation = train_test_split(rest, test_size=VALIDATION_SHARE, stratify=labels[rest], random_state=0)
    whole = Split(ArrayImages(images), labels)
    return Splits(
        name="digits",
        classes=tuple(str(name) for name in bunch.target_names),
        train=whole.take(np.sort(train)),
        validation=whole.take(np.sort(validation)),
        test=whole.take(np.sort(test)),
    )
