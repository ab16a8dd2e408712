"""Stopping at a loss or a gradient that is not a finite number, before it gets into the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from attention_transfer.errors import UserError


def all_finite(values: Sequence[Tensor], processes: int) -> bool:
    """Whether all scalars are finite, in every process; one answer for all, so that none waits for the others."""
    broken = (~torch.stack([value.isfinite() for value in values]).all()).float()
    if processes > 1:
        torch.distributed.all_reduce(broken)
    return not broken


def not_finite(values: Mapping[str, Sequence[Tensor]], processes: int, *, epoch: int, step: int) -> UserError:
    """The error that names the values that are not finite, the terms of the loss before the loss itself."""
    terms = [
        f"{name} is {part.item()}"
        for name, parts in sorted(values.items(), key=lambda item: item[0] in ("loss", "gradient norm"))
        for part in [part for part in parts if not part.isfinite()][:1]
    ]
    if processes > 1:
        everywhere: list[Any] = [None] * processes
        torch.distributed.all_gather_object(everywhere, terms)
        terms = list(dict.fromkeys(term for own in everywhere for term in own))
    return UserError(
        f"the loss or its gradient is not finite in epoch {epoch}, step {step}: {', '.join(terms)}; the checkpoints "
        "are those before it. Lower recipe.lr or the weight of a rule, or change recipe.precision, and start anew"
    )
