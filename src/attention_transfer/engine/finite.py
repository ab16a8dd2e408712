"""The error about a loss or a gradient that is not a finite number, raised before it gets into the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from attention_transfer.engine.distributed import gathered
from attention_transfer.errors import UserError


def not_finite(values: Mapping[str, Sequence[Tensor]], processes: int, *, epoch: int, step: int) -> UserError:
    """The error that names the values that are not finite, the terms of the loss before the loss itself."""
    terms = [
        f"{name} is {part.item()}"
        for name, parts in sorted(values.items(), key=lambda item: item[0] in ("loss", "gradient norm"))
        for part in [part for part in parts if not part.isfinite()][:1]
    ]
    terms = gathered(terms, processes)
    return UserError(
        f"the loss or its gradient is not finite in epoch {epoch}, step {step}: {', '.join(terms)}; the checkpoints "
        "are those before it. Lower recipe.lr or the weight of a rule, or change recipe.precision, and start anew"
    )
