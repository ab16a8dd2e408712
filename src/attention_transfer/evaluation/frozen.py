"""How much a frozen network's features know: nearest neighbours, and a linear probe.

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
from torch.nn import functional as F

from attention_transfer.data import eval_pixels
from attention_transfer.errors import UserError
from attention_transfer.evaluation.records import ImageSequence, input_batches
from attention_transfer.vit import describe, head_of

NEIGHBOURS = 20
TEMPERATURE = 0.07
PENALTIES = tuple(10.0**power for power in range(-4, 5))
"""Inverse strengths C of the penalty that a linear probe chooses from, the strongest penalty first."""

_CHUNK = 1024  # test images whose similarities to all training images are in memory at once

Labels = NDArray[np.int64]


@torch.no_grad()
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
    spec, head = describe(vit), head_of(vit)
    entering: list[Tensor] = []
    found: list[Tensor] = []
    handle = None if head is None else head.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    try:
        for _, _, inputs in input_batches(network, spec, images, eval_pixels(spec), batch):
            output: Any = network(inputs)
            if handle is None:
                states = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
                if not isinstance(states, Tensor):
                    raise UserError(f"{type(network).__name__} puts out {type(output).__name__}, which has no features")
                entering.append(states if states.dim() == 2 else _pooled(states, vit))
            found.append(entering.pop().float().cpu())
    finally:
        if handle is not None:
            handle.remove()
    return torch.cat(found)


def _pooled(states_BND: Tensor, vit: nn.Module) -> Tensor:
    tokens = describe(vit).tokens
    return states_BND[:, 0] if tokens.class_token else states_BND[:, tokens.patches(states_BND.shape[1])].mean(dim=1)


def knn(
    train: Tensor,
    train_labels: Labels,
    test: Tensor,
    *,
    classes: int | None = None,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Class probabilities by weighted nearest neighbours (DINO's protocol; Wu et al. 2018).

    The k training images of highest cosine similarity s vote for their class with weight exp(s / temperature).

    Args:
        train: features of the training images, (N, D).
        train_labels: their classes, (N,).
        test: features of other images, (M, D).
        classes: number of classes; default the largest label and one.
        k: neighbours; all training images where there are fewer.
        temperature: small values make the nearest count most.

    Returns:
        Votes that sum to one, float32 (M, C).

    Raises:
        UserError: the shapes do not fit, or k is not positive.
    """
    if len(train) != len(train_labels) or not len(train):
        raise UserError(f"there are {len(train)} training features and {len(train_labels)} labels; give one for each")
    if k < 1:
        raise UserError(f"k={k}: choose 1 neighbour or more")
    labels = torch.as_tensor(train_labels)
    memory = F.normalize(train, dim=1)
    count = int(labels.max()) + 1 if classes is None else classes
    votes = []
    for chunk in F.normalize(test, dim=1).split(_CHUNK):
        nearest = (chunk @ memory.T).topk(min(k, len(memory)), dim=1)
        weights = (nearest.values / temperature).softmax(dim=1)
        votes.append(weights.new_zeros(len(chunk), count).scatter_add_(1, labels[nearest.indices], weights))
    return torch.cat(votes)


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
