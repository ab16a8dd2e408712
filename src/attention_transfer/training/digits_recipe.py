"""The recipe for the embedded digits: the rates and weights with the best validation accuracy at 5 labels a class.

They suit networks as small as builtin/vit_digits (0.2 million weights). `benchmarks/search.py` is the search;
docs/log.md has its trials. A rule's weight multiplies a mean over blocks, of which that network has four.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from attention_transfer.transfer import LossRule, NetworkRule, Rule

NAME = "the digits' own recipe"

_SMALL = 1_000_000  # weights

_COMMON = {
    "epochs": 200,
    "batch_size": 50,
    "weight_decay": 0.05,
    "layer_decay": 1.0,
    "head_lr": 1.0,
    "label_smoothing": 0.1,
    "ema_decay": 0.99,
    "drop_path": 0.0,
    "validate_every": 20,
}


@dataclass(frozen=True)
class Tuned:
    """What the search found for a preset: the learning rate, and the weight of its rule if it has one."""

    lr: float
    weight: float | None = None

    @property
    def recipe(self) -> dict[str, Any]:
        """Values for the settings that a recipe leaves open."""
        return {**_COMMON, "lr": self.lr}

    def rules(self, rules: Sequence[Rule]) -> list[Rule]:
        """A preset's rules with the weight that was found."""
        if self.weight is None:
            return [*rules]
        return [
            replace(rule, weight=self.weight) if isinstance(rule, LossRule | NetworkRule) else rule for rule in rules
        ]


DIGITS: dict[str, Tuned] = {
    "scratch": Tuned(8e-3),
    "finetune": Tuned(4e-3),
    "copy": Tuned(4e-3),
    "distill": Tuned(8e-3, 4.0),
    "gta": Tuned(8e-3, 0.12),
    "gta-transmix": Tuned(4e-3, 0.036),
    "copy-q": Tuned(8e-3),
    "distill-output": Tuned(1.6e-2, 120.0),
    "feature-kd": Tuned(1.6e-2, 4.0),
    "logit-kd": Tuned(4e-3),
    "tuned-distill": Tuned(1.6e-2, 4.0),
    "linear-probe": Tuned(5e-2),
    "qkv-only": Tuned(4e-3),
    "attention-init": Tuned(4e-3),
    "l2sp": Tuned(8e-3),
    "bss": Tuned(8e-3, 0.003),
}

MAE: dict[str, Any] = {
    **_COMMON,
    "epochs": 300,
    "batch_size": 64,
    "lr": 1.5e-3,
    "label_smoothing": 0.0,
}
"""Masked autoencoding of the digits."""


def fits(network: nn.Module) -> bool:
    """Whether the recipe is for a network of this size."""
    return sum(p.numel() for p in network.parameters()) < _SMALL
