"""The rules on outputs and weights of a pair, ready to be computed at each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from attention_transfer.errors import raise_all
from attention_transfer.transfer.rule import NetworkRule, Seen
from attention_transfer.vit import OutputWatch, Pairing, TapHandle, ViTSpec, Watched, describe, unwrapped


@dataclass(frozen=True)
class _Watches:
    """What went by in one step."""

    teacher: Watched | None
    student: Watched


class NetworkLosses(nn.Module):
    """Computes the losses of network rules. What they train beside the student is in its parameters.

    Args:
        teacher: the teacher, or `None` where no rule reads it.
        student: the student; its weights now are where it started.
        rules: the rules by name.
        pairing: which teacher's block each block of the student is paired with.

    Attributes:
        start: the student's weights that rules count from, by name; empty where no rule does.

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
        self._pairs = _pairs(layers, pairing, there, here)
        features = any(rule.reads_features for rule in rules.values())
        self._student = OutputWatch(student, layers, features=features)
        self._teacher = None if teacher is None else OutputWatch(teacher, set(self._pairs.values()))
        reads_start = any(rule.reads_start for rule in rules.values())
        own = unwrapped(student).named_parameters() if reads_start else ()
        self.start = {name: parameter.detach().clone() for name, parameter in own}

    @property
    def handles(self) -> list[TapHandle]:
        """What it attached to the networks."""
        return [*self._student.handles, *([] if self._teacher is None else self._teacher.handles)]

    @contextmanager
    def watching(self) -> Iterator[_Watches]:
        """See what goes by in the networks' forwards inside the block."""
        with self._student.watching() as student:
            if self._teacher is None:
                yield _Watches(None, student)
            else:
                with self._teacher.watching() as teacher:
                    yield _Watches(teacher, student)

    def losses(
        self, student: nn.Module, logits: Tensor, teacher_logits: Tensor | None, watches: _Watches
    ) -> dict[str, Tensor]:
        """Each rule's loss by its name, unweighted."""
        there = {} if watches.teacher is None else watches.teacher.blocks
        seen = Seen(
            student=unwrapped(student),
            start=self.start,
            student_logits=logits,
            teacher_logits=teacher_logits,
            student_blocks=watches.student.blocks,
            teacher_blocks={layer: there[pair].detach() for layer, pair in self._pairs.items()},
            features=watches.student.features,
        )
        own = dict(self.modules_of.items())
        return {name: rule.loss(seen, own.get(name)) for name, rule in self.rules.items()}


def _pairs(layers: Sequence[int], pairing: Pairing, teacher: ViTSpec, student: ViTSpec) -> dict[int, int]:
    return {layer: pairing.teacher_layer(layer, teacher, student) for layer in layers}
