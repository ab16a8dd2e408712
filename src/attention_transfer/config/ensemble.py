"""What `ensemble` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from attention_transfer.config.base import Config
from attention_transfer.config.choices import Mean, Weighting


@dataclass(frozen=True, kw_only=True)
class MakeEnsemble(Config):
    """Settings of `ensemble`."""

    runs: list[str] = field(kw_only=False)
    """Folders of finished runs of `train`, at least two, of one data set."""

    mean: Mean = "probabilities"
    """What is averaged: probabilities, or logits: the softmax comes after, which is the geometric mean of the
    probabilities, brought to sum to one."""

    weights: Weighting | None = None
    """equal, or validation for those of the lowest cross-entropy on the validation split; default equal."""

    out: str | None = None
    """.json file for the result; default shows tables only."""

    overwrite: bool = False
    """Replace that file."""
