"""The verb `predict`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.predict import Predict
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.evaluation import Prediction


@verb(Predict, words=("run", "images"), lists=True, extra="train")
def predict(config: Predict) -> list[Prediction]:
    """Classify images with a trained run.

    Images are turned upright, and brought to the channels, size and normalisation of the model. A file that is named
    must be readable; of folders and patterns, those that are not are left out and listed at the end.

    Returns:
        A prediction for each image, in the order given.

    Raises:
        UserError: the run can't be loaded, or images that were named can't be read (each is named); nothing was
            written.
        OSError: the disk is full, or alike; no half of a file is left, and the same command can be given again.
    """
    from attention_transfer.evaluation.predict import predict_images

    return predict_images(config)
