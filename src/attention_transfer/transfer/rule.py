"""What a rule is: something that binds a student's attention to its teacher's, layer by layer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from torch import Tensor

from attention_transfer.errors import UserError
from attention_transfer.vit import AttentionCall, Indices, Query, Reading, ViTSpec, select


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Base of all rules. Derive from `OperandRule` or `LossRule`.

    Attributes:
        layers: blocks that the rule binds: `None` for all, n for the last n, or indices (negative from the end).
        heads: heads that it binds, by the same convention.
    """

    layers: Indices = None
    heads: Indices = None

    @property
    def reading(self) -> Reading:
        """What the rule reads of a call; where teacher and student are unlike, it decides how maps are mixed."""
        return "maps"

    @property
    def row(self) -> Query | None:
        """The one query row that the rule reads, or `None` for all; calls are narrowed to it."""
        return None

    @property
    def reads_values(self) -> bool:
        """Whether the rule needs the teacher's values; without them its last block stops at queries and keys."""
        return False

    @property
    def name(self) -> str:
        """Name in logs and loss dictionaries."""
        return type(self).__name__.lower()

    def chosen_layers(self, depth: int) -> tuple[int, ...]:
        """The blocks that the rule binds in a student of `depth` blocks."""
        return select(self.layers, depth, f"{type(self).__name__}.layers")

    def chosen_heads(self, heads: int) -> tuple[int, ...]:
        """The heads that the rule binds in blocks of `heads` heads."""
        return select(self.heads, heads, f"{type(self).__name__}.heads")

    def problems(self, teacher: ViTSpec, student: ViTSpec) -> list[str]:  # noqa: ARG002
        """Why the rule cannot bind this pair, a sentence each; called once, before any training."""
        found = []
        for choose, total in ((self.chosen_layers, student.depth), (self.chosen_heads, student.heads)):
            try:
                choose(total)
            except UserError as error:
                found.append(str(error))
        return found


@dataclass(frozen=True, kw_only=True)
class OperandRule(Rule, ABC):
    """A rule that puts the teacher's operands in the place of the student's."""

    @abstractmethod
    def operands(self, student: AttentionCall, teacher: AttentionCall) -> AttentionCall:
        """The operands that the student's block uses instead of its own."""


@dataclass(frozen=True, kw_only=True)
class LossRule(Rule, ABC):
    """A rule that adds a loss.

    Attributes:
        weight: factor on the loss, which is summed over layers; finite and not negative.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise UserError(f"{type(self).__name__}.weight is {self.weight}; give a finite number of at least 0")

    def attend(self, student: AttentionCall, teacher: AttentionCall) -> tuple[Tensor, Tensor] | None:  # noqa: ARG002
        """The student's attention, (B, H, N, D), and the unweighted loss, computed in one; `None` where it can't be.

        A rule that gives them is not asked for `layer_loss`.
        """
        return None

    def how(self, student: AttentionCall, teacher: AttentionCall) -> str:  # noqa: ARG002
        """How the loss is computed for such calls, for the log; empty where there is nothing to say."""
        return ""

    @abstractmethod
    def layer_loss(self, student: AttentionCall, teacher: AttentionCall) -> Tensor:
        """The unweighted loss of one block, a scalar."""


def check_heads(student: AttentionCall, teacher: AttentionCall) -> None:
    """Raise a `UserError` where two calls have unlike numbers of heads, which no choice of heads would mend."""
    if student.q.shape[1] != teacher.q.shape[1]:
        raise UserError(
            f"layer {student.layer} has {student.q.shape[1]} heads (student) and {teacher.q.shape[1]} (teacher); pair "
            'them by heads="mean" or heads="match"'
        )


def take_heads(call: AttentionCall, heads: tuple[int, ...]) -> AttentionCall:
    """The call with only the named heads; the call itself where all are named."""
    if len(heads) == call.q.shape[1]:
        return call
    index = list(heads)
    mask = call.mask
    if mask is not None and mask.dim() > 2 and mask.shape[-3] > 1:
        mask = mask[..., index, :, :]
    return replace(call, q=call.q[:, index], k=call.k[:, index], v=call.v[:, index], mask=mask)
