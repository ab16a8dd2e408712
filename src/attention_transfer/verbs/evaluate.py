"""The verb `evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention_transfer.config.evaluate import Evaluate
from attention_transfer.verbs.base import verb

if TYPE_CHECKING:
    from attention_transfer.evaluation import Evaluation


@verb(Evaluate, words=("models",), extra="train")
def evaluate(config: Evaluate) -> Evaluation:
    """Say how good classifiers are: accuracy, calibration and confusion, with intervals, and how far two differ.

    Intervals are over images, 95 % (BCa); differences are paired image by image, with a sign-flip test. With `frozen`,
    features are judged in place of a classification layer.

    Returns:
        The scores of each model, and the difference of each two.

    Raises:
        UserError: a model can't be loaded, has no classes, or its classes are not those of the data set; nothing was
            written.
    """
    from attention_transfer.evaluation.evaluate_verb import evaluate_models

    return evaluate_models(config)
