"""Pre-training that is judged by nearest neighbours at each validation.

Shapes: N and M images, D width of a feature, C classes, B images of a batch.
"""

from __future__ import annotations

import logging
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.data import ImageSet, keep_pixels
from attention_transfer.engine.hardware import Hardware
from attention_transfer.engine.loading import evaluation_loader
from attention_transfer.errors import UserError
from attention_transfer.objectives import Images, MaskedAutoencoder, Watch
from attention_transfer.vit import features_of

log = logging.getLogger("attention_transfer")

NEIGHBOURS = 20
TEMPERATURE = 0.07

_CHUNK = 1024  # test images whose similarities to all training images are in memory at once


class JudgedAutoencoder(MaskedAutoencoder):
    """A masked autoencoder whose encoder classifies the validation images by nearest neighbours as it is trained.

    The labels change nothing in the training: they are read at validations alone, and nothing is drawn at random.

    Args:
        encoder: as in `MaskedAutoencoder`.
        train: training images as in evaluation, unaugmented pixels with classes; those that vote.
        workers: processes that load them, where they do not fit in memory.
        mask_ratio: as in `MaskedAutoencoder`.
    """

    def __init__(self, encoder: nn.Module, train: ImageSet, *, workers: int, mask_ratio: float) -> None:
        super().__init__(encoder, mask_ratio=mask_ratio)
        self._train = train
        self._workers = workers

    def watch(self, images: Images, picture: Path | None, *, name: str, batch_size: int) -> Watch:  # noqa: ARG002
        """The k-NN accuracy on the validation split, as `validation/knn_accuracy`."""
        return partial(self._judge, images, name, batch_size)

    def _judge(self, validation: Images, name: str, batch_size: int, prepare: nn.Module) -> dict[str, float]:
        train, labels = self._features(self._memory, prepare, batch_size)
        held_out, truth = self._features(validation, prepare, batch_size)
        with torch.autocast("cpu", enabled=False):  # in bf16 the nearest would often be equally near
            votes = knn(train, labels.numpy(), held_out)
        accuracy = float((votes.argmax(dim=1) == truth).double().mean())
        log.debug("%s: %.1f %% of the validation images are classified by nearest neighbours", name, 100 * accuracy)
        return {"validation/knn_accuracy": accuracy}

    @cached_property
    def _memory(self) -> Images:
        return keep_pixels(self._train, "training images for nearest neighbours")

    def _features(self, images: Images, prepare: nn.Module, batch_size: int) -> tuple[Tensor, Tensor]:
        """Features and classes of all images, float32 (N, D) and int64 (N,), on the CPU."""
        device = next(self.parameters()).device
        loader = evaluation_loader(images, batch_size, 0, Hardware(), self._workers)
        found = [(features_of(self.encoder, prepare(pixels.to(device))).cpu(), labels) for pixels, labels in loader]
        features, classes = zip(*found, strict=True)
        return torch.cat(features), torch.cat(classes)


def knn(
    train: Tensor,
    train_labels: NDArray[np.int64],
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
