"""How an unequal teacher is mapped to its student, as settings; `vit/pairing.py` does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex

from attention_transfer.config.choices import Depth, Heads, Registers, wrong_choices
from attention_transfer.errors import raise_all


@dataclass(frozen=True, kw_only=True)
class PairingSettings:
    """How an unequal teacher's layers, heads and tokens are mapped to the student's. Exact where nothing differs.

    Raises:
        UserError: a value is none of these; every one is listed.
    """

    layers: Depth | list[int] = "relative"
    """Which blocks are paired: "relative" takes the teacher's block at the same relative depth; "last" pairs the last
    blocks; a list names the teacher's block of each block of the student (negative from the end)."""

    heads: Heads = "same"
    """Which heads are paired: "same" needs equal numbers; "mean" averages groups of neighbouring heads (or repeats
    them, where the student has more); "match" picks for each student's head the teacher's head whose maps differ least,
    by the mean Jensen–Shannon divergence over the first batch, each once where there are enough."""

    registers: Registers = "drop"
    """What happens to the attention that the teacher pays to tokens that the student lacks: "drop" renormalises the
    rows without them, "to class" gives it to the class token."""

    def __post_init__(self) -> None:
        found = wrong_choices(self, heads=Heads, registers=Registers)
        if isinstance(self.layers, str):
            found += wrong_choices(self, layers=Depth)
        elif not (isinstance(self.layers, Sequence) and all(isinstance(i, SupportsIndex) for i in self.layers)):
            found.append(
                f'Pairing.layers is {self.layers!r}; give "relative", "last", or a list of the teacher\'s blocks'
            )
        raise_all(found)
