"""What `evaluate` finds out."""

from __future__ import annotations

from dataclasses import dataclass

from attention_transfer.config.choices import FrozenProbe, SplitName
from attention_transfer.evaluation.intervals import PairedDifference
from attention_transfer.evaluation.metrics import ClassificationScores
from attention_transfer.evaluation.shift import Shifts
from attention_transfer.evaluation.throughput import ForwardCost


@dataclass(frozen=True)
class ModelScores:
    """How good one model is.

    Attributes:
        name: as it was named.
        classes: class names, in the order of `scores.per_class` and `scores.confusion`.
        scores: its figures.
        cost: of a forward pass; `None` of an ensemble.
    """

    name: str
    classes: tuple[str, ...]
    scores: ClassificationScores
    cost: ForwardCost | None = None


@dataclass(frozen=True)
class ModelDifference:
    """How far two models differ on the same images, first minus second.

    Attributes:
        models: their names.
        top1: of accuracy.
        nll: of the negative log-likelihood, in nats.
        brier: of the Brier score.
    """

    models: tuple[str, str]
    top1: PairedDifference
    nll: PairedDifference
    brier: PairedDifference


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found out.

    Attributes:
        data: the data set.
        split: which of its images.
        images: how many.
        frozen: how features were judged; `None` for classification layers.
        models: in the order given.
        differences: of every two models, in order.
        shifts: what was found on shifted images; `None` where none were asked for.
    """

    data: str
    split: SplitName
    images: int
    frozen: FrozenProbe | None
    models: tuple[ModelScores, ...]
    differences: tuple[ModelDifference, ...]
    shifts: Shifts | None = None
