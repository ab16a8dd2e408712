"""Rules on the student alone, which keep fine-tuning near its start or its features rich: what GTA is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.transfer.rule import NetworkRule, Seen, widened
from attention_transfer.vit import parameters_of


@dataclass(frozen=True, kw_only=True)
class L2SP(NetworkRule):
    """Keep the weights near where they started (Li, Grandvalet and Davoine 2018, arXiv 1802.01483, eq. 2).

    `½ ‖w - w₀‖²` over the backbone and `½ head · ‖w_head‖²`. Their weights are 0.01 for both.

    Attributes:
        head: the head's factor beside the backbone's 1: it started at random, so it is kept near 0.
    """

    weight: float = 0.01
    head: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.head) and self.head >= 0):
            raise UserError(f"L2SP.head is {self.head}; give a finite number of at least 0")

    @property
    def reads_start(self) -> bool:
        """The weights that the student was bound with."""
        return True

    def loss(self, seen: Seen, module: nn.Module | None) -> Tensor:  # noqa: ARG002
        """Half the summed squares, a scalar."""
        heads = parameters_of(seen.student, "head")
        total = widened(seen.student_logits).new_zeros(())
        for name, parameter in seen.student.named_parameters():
            if parameter.requires_grad and name in heads:
                total = total + self.head * widened(parameter).square().sum()
            elif parameter.requires_grad:
                total = total + widened(parameter - seen.start[name].to(parameter)).square().sum()
        return total / 2


@dataclass(frozen=True, kw_only=True)
class BSS(NetworkRule):
    """Batch spectral shrinkage: press the smallest singular values of a batch's features (Chen et al. 2019, NeurIPS).

    `Σ_{i ≤ k} σ_{-i}²` of the features, (B, width), that enter the classification layer; their weight is 0.001, k is 1.

    Attributes:
        k: how many of the smallest singular values.
    """

    weight: float = 0.001
    k: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.k, int) and self.k >= 1):
            raise UserError(f"BSS.k is {self.k}; give a whole number of at least 1")

    @property
    def reads_features(self) -> bool:
        """What enters the classification layer."""
        return True

    def loss(self, seen: Seen, module: nn.Module | None) -> Tensor:  # noqa: ARG002
        """The summed squares of the smallest singular values, a scalar."""
        assert seen.features is not None
        values = torch.linalg.svdvals(widened(seen.features))  # falling
        shrunk: Tensor = values[-self.k :].square().sum()
        return shrunk
