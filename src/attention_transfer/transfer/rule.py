"""What a rule is: something that binds a student to its teacher, or to where it came from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from attention_transfer.attention import AttentionCall, Query
from attention_transfer.errors import UserError, raise_all
from attention_transfer.vit import Indices, Reading, ViTSpec, select, wrong_choices

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

    @property
    def replaces(self) -> frozenset[str]:
        """Which of the student's operands, "q", "k" and "v", the rule replaces in the heads that it binds."""
        return frozenset()

    @property
    def needs_class_token(self) -> bool:
        """Whether both networks need a class token."""
        return self.row == "class"

    def chosen_layers(self, depth: int) -> tuple[int, ...]:
        """The blocks that the rule binds in a student of `depth` blocks."""
        return select(self.layers, depth, f"{type(self).__name__}.layers")

    def chosen_heads(self, heads: int) -> tuple[int, ...]:
        """The heads that the rule binds in blocks of `heads` heads."""
        return select(self.heads, heads, f"{type(self).__name__}.heads")

    def take_heads(self, student: AttentionCall, teacher: AttentionCall) -> tuple[AttentionCall, AttentionCall]:
        """Both calls with the heads that the rule binds.

        Raises:
            UserError: they have unlike numbers of heads, which no choice of heads would fix.
        """
        total = student.q.shape[1]
        if total != teacher.q.shape[1]:
            raise UserError(
                f"layer {student.layer} has {total} heads (student) and {teacher.q.shape[1]} (teacher); pair them by "
                'heads="mean" or heads="match"'
            )
        if self.binds_all_heads(total):
            return student, teacher
        heads = self.chosen_heads(total)
        return student.heads(heads), teacher.heads(heads)

    def binds_all_heads(self, heads: int) -> bool:
        """Whether the rule binds every one of a block's heads."""
        return self.heads is None or len(self.chosen_heads(heads)) == heads

    def problems(self, teacher: ViTSpec, student: ViTSpec) -> list[str]:
        """Choices of layers and heads that lie outside the student's, and class tokens that are not there."""
        found = []
        for choose, total in ((self.chosen_layers, student.depth), (self.chosen_heads, student.heads)):
            try:
                choose(total)
            except UserError as error:
                found.append(str(error))
        for role, spec in (("teacher", teacher), ("student", student)):
            if self.needs_class_token and not spec.class_token:
                need = f"{type(self).__name__} needs a class token"
                found.append(f"{need}, which {role} {spec.name} does not have{self._instead(spec)}")
        return found

    def _instead(self, spec: ViTSpec) -> str:  # noqa: ARG002
        """How to do without a class token, as the end of a sentence."""
        return ""


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


class CallPair(NamedTuple):
    """A call of the student, and the teacher's that is paired with it."""

    student: AttentionCall
    teacher: AttentionCall


@dataclass(frozen=True, kw_only=True)
class OperandRule(AttentionRule, ABC):
    """A rule that puts the teacher's operands in the place of the student's; `replaces` says which."""

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

    def implementation(self, student: AttentionCall, teacher: AttentionCall) -> str:  # noqa: ARG002
        """How the loss is computed for such calls, for the log; empty where there is nothing to say."""
        return ""

    @abstractmethod
    def layer_loss(self, student: AttentionCall, teacher: AttentionCall) -> Tensor:
        """The unweighted loss of one block, a scalar."""

    def loss(self, calls: Sequence[CallPair]) -> Tensor:
        """The unweighted loss from the calls of all layers that the rule binds, in their order: the mean of theirs."""
        return torch.stack([self.layer_loss(*pair) for pair in calls]).mean()


@dataclass(frozen=True, kw_only=True)
class JointLossRule(LossRule, ABC):
    """A rule that adds a loss on the attention of all its layers at once, as attention rollout is."""

    @abstractmethod
    def loss(self, calls: Sequence[CallPair]) -> Tensor:
        """The unweighted loss from the calls of all layers that the rule binds, in their order; a scalar."""

    def layer_loss(self, student: AttentionCall, teacher: AttentionCall) -> Tensor:
        """The loss of one layer by itself."""
        return self.loss([CallPair(student, teacher)])


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
