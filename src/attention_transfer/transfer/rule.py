"""What a rule is: something that binds a student to its teacher, or to where it came from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError, raise_all
from attention_transfer.vit import AttentionCall, Indices, Query, Reading, ViTSpec, select, wrong_choices

Schedule = Literal["constant", "cosine", "off"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Base of all rules. Derive from `OperandRule`, `LossRule` or `NetworkRule`."""

    @property
    def name(self) -> str:
        """Name in logs and loss dictionaries."""
        return type(self).__name__.lower()

    @property
    def needs_teacher(self) -> bool:
        """Whether the rule reads the teacher."""
        return True

    def problems(self, teacher: ViTSpec, student: ViTSpec) -> list[str]:  # noqa: ARG002
        """Why the rule cannot bind this pair, a sentence each; called once, before any training."""
        return []


@dataclass(frozen=True, kw_only=True)
class AttentionRule(Rule):
    """A rule on attention, layer by layer.

    Attributes:
        layers: blocks that the rule binds: `None` for all, n for the last n, indices (negative from the end), or words:
            "first n", "last n", "every n".
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

    def chosen_layers(self, depth: int) -> tuple[int, ...]:
        """The blocks that the rule binds in a student of `depth` blocks."""
        return select(self.layers, depth, f"{type(self).__name__}.layers")

    def chosen_heads(self, heads: int) -> tuple[int, ...]:
        """The heads that the rule binds in blocks of `heads` heads."""
        return select(self.heads, heads, f"{type(self).__name__}.heads")

    def problems(self, teacher: ViTSpec, student: ViTSpec) -> list[str]:  # noqa: ARG002
        """Choices of layers and heads that lie outside the student's."""
        found = []
        for choose, total in ((self.chosen_layers, student.depth), (self.chosen_heads, student.heads)):
            try:
                choose(total)
            except UserError as error:
                found.append(str(error))
        return found


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A loss with a weight that may change during training.

    Attributes:
        weight: factor on the loss; finite and not negative.
        schedule: "constant"; "cosine", which falls along half a cosine to 0; "off", which is 0 afterwards.
        until: share of the training after which a "cosine" or "off" weight is 0.
    """

    weight: float = 1.0
    schedule: Schedule = "constant"
    until: float = 1.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise UserError(f"{name}.weight is {self.weight}; give a finite number of at least 0")
        raise_all(wrong_choices(self, schedule=Schedule))
        if not 0 < self.until <= 1:
            raise UserError(f"{name}.until is {self.until}; give a share of the training above 0 and at most 1")
        if self.schedule == "constant" and self.until != 1:
            raise UserError(f'{name}.until has no effect on a constant weight; set schedule to "cosine" or "off"')

    def weight_at(self, progress: float) -> float:
        """The weight after a share of the training, from 0 to 1."""
        if self.schedule == "constant":
            return self.weight
        if progress >= self.until:
            return 0.0
        if self.schedule == "off":
            return self.weight
        return self.weight * 0.5 * (1 + math.cos(math.pi * progress / self.until))


@dataclass(frozen=True, kw_only=True)
class OperandRule(AttentionRule, ABC):
    """A rule that puts the teacher's operands in the place of the student's."""

    @abstractmethod
    def operands(self, student: AttentionCall, teacher: AttentionCall) -> AttentionCall:
        """The operands that the student's block uses instead of its own."""


@dataclass(frozen=True, kw_only=True)
class LossRule(Weighted, AttentionRule, ABC):
    """A rule that adds a loss on attention, the mean over layers."""

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


@dataclass(frozen=True)
class Seen:
    """What a network rule can read after a forward pass; only what some rule said it needs is there.

    Attributes:
        student: the network that is trained, out of any wrapper.
        start: its parameters as they were when it was bound, by name.
        student_logits: class logits, (B, classes).
        teacher_logits: the teacher's, (B, classes), without gradient.
        student_blocks: output of blocks, (B, N, width), by the student's layers.
        teacher_blocks: output of the blocks that are paired with them, (B, N, width), by the student's layers.
        features: what enters the student's classification layer, (B, width).
    """

    student: nn.Module
    start: Mapping[str, Tensor]
    student_logits: Tensor
    teacher_logits: Tensor | None = None
    student_blocks: Mapping[int, Tensor] = field(default_factory=dict)
    teacher_blocks: Mapping[int, Tensor] = field(default_factory=dict)
    features: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class NetworkRule(Weighted, Rule, ABC):
    """A rule that adds a loss on what the networks put out, or on the student's weights."""

    @property
    def reads_teacher_logits(self) -> bool:
        """Whether it needs the teacher's class logits."""
        return False

    @property
    def reads_features(self) -> bool:
        """Whether it needs what enters the student's classification layer."""
        return False

    @property
    def reads_start(self) -> bool:
        """Whether it needs the student's first weights."""
        return False

    def read_blocks(self, depth: int) -> tuple[int, ...]:  # noqa: ARG002
        """The blocks of a student of `depth` blocks whose outputs it needs, of both networks."""
        return ()

    @property
    def needs_teacher(self) -> bool:
        """Whether the rule reads the teacher."""
        return self.reads_teacher_logits

    def module(self, teacher: ViTSpec, student: ViTSpec) -> nn.Module | None:  # noqa: ARG002
        """What the rule trains beside the student, if anything."""
        return None

    @abstractmethod
    def loss(self, seen: Seen, module: nn.Module | None) -> Tensor:
        """The unweighted loss, a scalar."""


def widened(x: Tensor) -> Tensor:
    """The tensor in float32 or wider: half precision is too coarse for a loss."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


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
