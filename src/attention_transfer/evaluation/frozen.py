"""How much a frozen network's features know: the features, and a linear probe.

Nearest neighbours, which training looks at too, are in `training/neighbours.py`.

Shapes: N images, D width of a feature, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from attention_transfer.data import eval_pixels
from attention_transfer.errors import UserError
from attention_transfer.evaluation.records import ImageSequence, input_batches
from attention_transfer.vit import describe, features_of

PENALTIES = tuple(10.0**power for power in range(-4, 5))
"""Inverse strengths C of the penalty that a linear probe chooses from, the strongest penalty first."""

Labels = NDArray[np.int64]


def frozen_features(
    network: nn.Module, images: ImageSequence, *, vit: nn.Module | None = None, batch: int = 64
) -> Tensor:
    """A network's features of images, float32 (N, D), on the CPU.

    They are what enters the classification layer; in a network without one its output, or the class token (or else the
    mean patch) of the last hidden state that it puts out.

    Args:
        network: what is run, in eval mode.
        images: any images; they are resized and cropped as in evaluation.
        vit: the vision transformer in it whose features are taken; default the only one.
        batch: images a forward pass.

    Raises:
        UserError: there are no images, the network is in training mode, or it puts out no features.
    """
    vit = network if vit is None else vit
    spec = describe(vit)
    batches = input_batches(network, spec, images, eval_pixels(spec), batch)
    return torch.cat([features_of(network, inputs, vit=vit).cpu() for _, _, inputs in batches])


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Logistic regression on standardised features.

    Attributes:
        penalty: the inverse strength C of its L2 penalty.
        validation: accuracy on the validation images, by which C was chosen, in [0, 1].
        classifier: scikit-learn's pipeline.
        classes: number of classes.
    """

    penalty: float
    validation: float
    classifier: Any
    classes: int

    def log_probabilities(self, features: Tensor) -> NDArray[np.float64]:
        """Logarithms of class probabilities, (N, C); a class without training images has the least finite number."""
        found = self.classifier.predict_log_proba(features.numpy())
        every = np.full((len(features), self.classes), np.finfo(np.float32).min, dtype=np.float64)
        every[:, self.classifier.classes_] = found
        return every


def linear_probe(
    train: Tensor,
    train_labels: Labels,
    validation: Tensor,
    validation_labels: Labels,
    *,
    classes: int | None = None,
    penalties: Sequence[float] = PENALTIES,
    iterations: int = 1000,
) -> LinearProbe:
    """Fit a linear classifier to frozen features; validation chooses its penalty, of equal ones the stronger.

    Args:
        train: features of the training images, (N, D).
        train_labels: their classes, (N,).
        validation: features of the validation images.
        validation_labels: their classes.
        classes: number of classes; default the largest label and one.
        penalties: inverse strengths C of the L2 penalty to choose from.
        iterations: most steps of L-BFGS.

    Raises:
        UserError: there are no validation images, or a single class.
    """
    if not len(validation) or len(set(train_labels.tolist())) < 2:
        raise UserError("a linear probe needs two classes to tell apart, and validation images to choose its penalty")
    best: tuple[float, float, Any] | None = None
    for penalty in sorted(penalties):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=iterations))
        classifier.fit(train.numpy(), train_labels)
        accuracy = float(classifier.score(validation.numpy(), validation_labels))
        if best is None or accuracy > best[0]:
            best = accuracy, penalty, classifier
    if best is None:
        raise UserError("penalties is empty; give a number or more")
    every = np.concatenate([train_labels, validation_labels])
    return LinearProbe(best[1], best[0], best[2], int(every.max()) + 1 if classes is None else classes)
