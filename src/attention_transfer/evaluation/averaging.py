"""Averaging the predictions of several networks: the module, the best weights, and how alike the members predict.

Shapes: K members, B images, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.config.choices import Mean
from attention_transfer.errors import UserError, nearest, raise_all
from attention_transfer.evaluation.classifier import Classifier
from attention_transfer.training.card import interval
from attention_transfer.vit import ViTSpec, describe

_LEAST = 1e-9  # of a fitted weight: at 0, the slope is infinite where all other members rule the right class out


class Ensemble(nn.Module):
    """Several networks as one classifier.

    With `mean="probabilities"` the class probabilities are Σ_k w_k p_k; with `mean="logits"` they are
    softmax(Σ_k w_k z_k), which is the geometric mean of the p_k, brought to sum to one.

    The members must take the same images: of one size, with the same channels and normalisation. This is checked of
    vision transformers that [`describe`][attention_transfer.vit.describe.describe] knows, and of the networks of
    [`load_run`][attention_transfer.load_run]; other modules may be members too, and are not checked.
    Members stay in the mode (training or eval) they are in.

    Args:
        networks: modules that give logits, (B, classes), of images (B, channels, height, width); at least two.
        weights: how much each counts, in [0, 1], K numbers that sum to one; default equal.
        mean: what is averaged.

    Raises:
        UserError: the members take different images or have different numbers of classes, or the weights are wrong;
            every reason is listed.

    Example:
        ```python
        result = ensemble(["runs/a", "runs/b"], weights="validation")
        networks = [load_run(member.run).network for member in result.members]
        both = Ensemble(networks, weights=result.weights, mean=result.mean)
        ```
    """

    weights: Tensor

    def __init__(
        self, networks: Sequence[nn.Module], *, weights: Sequence[float] | None = None, mean: Mean = "probabilities"
    ) -> None:
        super().__init__()
        known = get_args(Mean)
        problems = [] if mean in known else [f"mean is {mean!r}; {nearest(mean, known)}"]
        problems += _unfit(networks)
        raise_all(problems + ([] if weights is None else _weight_problems(weights, len(networks))))
        self.networks = nn.ModuleList(networks)
        self.mean: Mean = mean
        self.register_buffer("weights", torch.tensor(weights or [1 / len(networks)] * len(networks)))

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities, (B, classes), float32 at least, of normalised images (B, channels, height, width)."""
        logits_KBC = torch.stack([network(images) for network in self.networks])
        precise = logits_KBC.to(torch.promote_types(logits_KBC.dtype, torch.float32))
        return combined(precise, self.weights.to(precise.dtype), self.mean)


@dataclass(frozen=True)
class Score:
    """How good predictions are on the test split.

    Attributes:
        accuracy: share in [0, 1].
        low: lower bound of its 95 % interval (Wilson).
        high: upper bound of the same.
        cross_entropy: with the labels, in nats.
    """

    accuracy: float
    low: float
    high: float
    cross_entropy: float


def combined(logits_KBC: Tensor, weights_K: Tensor, mean: Mean) -> Tensor:
    """Log-probabilities, (B, classes), of the weighted mean of K members."""
    if mean == "probabilities":
        return (F.log_softmax(logits_KBC, dim=-1) + weights_K.log()[:, None, None]).logsumexp(dim=0)
    return F.log_softmax((logits_KBC * weights_K[:, None, None]).sum(dim=0), dim=-1)


def fitted_weights(logits_KBC: Tensor, labels_B: Tensor, mean: Mean) -> Tensor:
    """The convex weights that minimise the cross-entropy, which is convex in them; float64, (K,).

    Args:
        logits_KBC: of K members, (K, B, classes), float64; they may be log-probabilities.
        labels_B: classes, (B,).
        mean: what is averaged.

    Raises:
        UserError: the search did not converge.
    """
    members = len(logits_KBC)

    def loss_and_slope(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights_K = torch.from_numpy(values.copy()).requires_grad_()
        loss = F.nll_loss(combined(logits_KBC, weights_K, mean), labels_B)
        (slope_K,) = torch.autograd.grad(loss, weights_K)
        return loss.item(), slope_K.numpy()

    found = optimize.minimize(
        loss_and_slope,
        np.full(members, 1 / members),
        jac=True,
        method="SLSQP",
        bounds=[(_LEAST, 1.0)] * members,
        constraints=optimize.LinearConstraint(np.ones((1, members)), 1, 1),
        options={"ftol": 1e-10, "maxiter": 1000},
    )
    if not found.success:
        raise UserError(f"no weights were found on the validation split ({found.message}); use equal weights")
    return torch.from_numpy(found.x / found.x.sum())


def score(log_probabilities_BC: Tensor, labels_B: NDArray[np.int64]) -> Score:
    """Accuracy with its 95 % interval (Wilson), and cross-entropy in nats.

    Args:
        log_probabilities_BC: (B, classes).
        labels_B: classes, (B,).
    """
    accuracy = float((log_probabilities_BC.argmax(dim=-1).numpy() == labels_B).mean())
    cross_entropy = F.nll_loss(log_probabilities_BC, torch.from_numpy(labels_B)).item()
    return Score(accuracy, *interval(accuracy, len(labels_B)), cross_entropy)


def likeness(
    one_B: NDArray[np.int64], other_B: NDArray[np.int64], labels_B: NDArray[np.int64]
) -> tuple[float, float | None]:
    """Agreement and error overlap, as in `Pair`, of two members' predicted classes, (B,), with the labels, (B,)."""
    wrong, also = one_B != labels_B, other_B != labels_B
    either = int((wrong | also).sum())
    return float((one_B == other_B).mean()), int((wrong & also).sum()) / either if either else None


def _unfit(networks: Sequence[nn.Module]) -> list[str]:
    """Why networks can't take the same images, or their predictions can't be averaged."""
    if len(networks) < 2:
        return [f"an ensemble needs at least two networks, not {len(networks)}; give more"]
    known = [(number, spec) for number, spec in enumerate(map(_spec, networks)) if spec is not None]
    return [
        f"{name} is {getattr(known[0][1], name)} of network {known[0][0]} and {getattr(spec, name)} of network "
        f"{number}; an Ensemble gives all its members the same images, and needs the same classes"
        for number, spec in known[1:]
        for name in ("image_size", "channels", "mean", "std", "classes")
        if getattr(spec, name) != getattr(known[0][1], name)
    ]


def _spec(network: nn.Module) -> ViTSpec | None:
    try:
        return describe(network.student if isinstance(network, Classifier) else network)
    except UserError:  # no vision transformer: it may be a member all the same, and nothing says what it takes
        return None


def _weight_problems(weights: Sequence[float], members: int) -> list[str]:
    if len(weights) != members:
        return [f"there are {len(weights)} weights for {members} networks; give one for each"]
    if all(0 <= weight <= 1 for weight in weights) and math.isclose(sum(weights), 1, abs_tol=1e-6):
        return []
    return [f"weights are {list(weights)}; give numbers from 0 to 1 that sum to one"]
