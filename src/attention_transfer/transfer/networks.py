"""The rules on outputs and weights of a pair, ready to be computed at each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attention_transfer.errors import raise_all
from attention_transfer.hooks import HookHandle
from attention_transfer.transfer.rule import NetworkRule, Seen
from attention_transfer.vit import OutputWatch, Pairing, Watched, describe, unwrapped


class Constants(dict[str, Tensor]):
    """Tensors that never change, so that copies share them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Constants:
        return self


class NetworkLosses(nn.Module):
    """Computes the losses of network rules. What they train beside the student is in its parameters.

    Args:
        teacher: the teacher, or `None` where no rule reads it.
        student: the student; its weights now are where it started.
        rules: the rules by name.
        pairing: which teacher's block each block of the student is paired with.

    Attributes:
        start: the student's weights that rules count from, by name; empty where no rule does.
        blocks: the teacher's block that is paired with each block of the student that a rule reads.

    Raises:
        UserError: a rule cannot bind the pair; every reason is listed.
    """

    def __init__(
        self, teacher: nn.Module | None, student: nn.Module, rules: Mapping[str, NetworkRule], pairing: Pairing
    ) -> None:
        super().__init__()
        here = describe(student)
        there = here if teacher is None else describe(teacher)
        raise_all([problem for rule in rules.values() for problem in rule.problems(there, here)])
        self.rules = dict(rules)
        self.reads_teacher_logits = any(rule.reads_teacher_logits for rule in rules.values())
        self.reads_teacher = any(rule.needs_teacher for rule in rules.values())
        built = {name: rule.module(there, here) for name, rule in rules.items()}
        like = next(student.parameters())
        self.modules_of = nn.ModuleDict({name: module for name, module in built.items() if module is not None})
        self.modules_of.to(like.device, like.dtype)
        layers = sorted({layer for rule in rules.values() for layer in rule.read_blocks(here.depth)})
        self.blocks = {layer: pairing.teacher_layer(layer, there, here) for layer in layers}
        reads_start = any(rule.reads_start for rule in rules.values())
        own = unwrapped(student).named_parameters() if reads_start else ()
        self.start = Constants({name: parameter.detach().clone() for name, parameter in own})

    def losses(
        self, student: nn.Module, logits: Tensor, teacher_logits: Tensor | None, outputs: Outputs
    ) -> dict[str, Tensor]:
        """Each rule's loss by its name, unweighted."""
        there = {} if outputs.teacher is None else outputs.teacher.blocks
        seen = Seen(
            student=unwrapped(student),
            start=self.start,
            student_logits=logits,
            teacher_logits=teacher_logits,
            student_blocks=outputs.student.blocks,
            teacher_blocks={layer: there[pair].detach() for layer, pair in self.blocks.items()},
            features=outputs.student.features,
        )
        own = dict(self.modules_of.items())
        return {name: rule.loss(seen, own.get(name)) for name, rule in self.rules.items()}


@dataclass(frozen=True)
class Outputs:
    """What the networks put out in one step."""

    student: Watched
    teacher: Watched | None


class OutputWatches:
    """Watches what the rules of `NetworkLosses` read of the two networks."""

    def __init__(self, teacher: nn.Module | None, student: nn.Module, losses: NetworkLosses) -> None:
        features = any(rule.reads_features for rule in losses.rules.values())
        self._student = OutputWatch(student, losses.blocks, features=features)
        self._teacher = None if teacher is None else OutputWatch(teacher, set(losses.blocks.values()))
        self.handles: list[HookHandle] = [*self._student.handles, *(self._teacher.handles if self._teacher else ())]

    @contextmanager
    def watching(self) -> Iterator[Outputs]:
        """See what the networks put out in forwards inside the block."""
        with self._student.watching() as student:
            if self._teacher is None:
                yield Outputs(student, None)
                return
            with self._teacher.watching() as teacher:
                yield Outputs(student, teacher)
