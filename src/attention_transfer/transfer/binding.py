"""What an `AttentionTransfer` attaches to its networks, and takes off again."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attention_transfer.attention import AttentionCall
from attention_transfer.hooks import Scope, Skipped
from attention_transfer.transfer.networks import NetworkLosses, OutputWatches
from attention_transfer.transfer.plan import Plan, Step
from attention_transfer.vit import AttentionProbe, SharedDropPath, hook_attention, library_of


class Removable(Protocol):
    """A handle of something that was attached to a network."""

    def remove(self) -> None:
        """Take it off."""


class Binding:
    """What binds a student to its teacher: hooks on both, and the scope that tells them which step is running.

    Args:
        owner: all of it is taken off when nobody has this object any more, if `remove` does not do it before.
        teacher: the network that the rules read, or `None`.
        student: the network that is trained.
        plan: the rules on attention, or `None`.
        networks: the rules on outputs and weights, or `None`.
        share_drop_path: drop the same residual branches in both.
        teacher_dtype: autocast the teacher alone to this precision.
        compile_teacher: run the teacher alone through `torch.compile`.

    Raises:
        UserError: the student has no output that a rule reads.
    """

    def __init__(
        self,
        owner: object,
        teacher: nn.Module | None,
        student: nn.Module,
        plan: Plan | None,
        networks: NetworkLosses | None,
        *,
        share_drop_path: bool,
        teacher_dtype: torch.dtype | None,
        compile_teacher: bool,
    ) -> None:
        library = library_of(student)
        self.plan = plan
        self.released = self.logged = False
        self.outputs = None if networks is None else OutputWatches(teacher, student, networks)  # may refuse the student
        # A constant where code is compiled: to trace a walk through all modules takes longer than the network does, and
        # the network's own forward, which reads the same switches, is traced again when one is turned.
        recomputes = torch.compiler.assume_constant_result(lambda: library.recomputes(student))
        self.scope: Scope[Step] = Scope(student, recomputes=recomputes)
        self.handles: list[Removable] = [*self.scope.handles, *(self.outputs.handles if self.outputs else ())]
        self.drop_path: SharedDropPath | None = None
        self.probe: AttentionProbe | None = None
        if teacher is not None and share_drop_path:
            self.drop_path = SharedDropPath(student, teacher, self._masks)
            self.handles += self.drop_path.handles
        if teacher is not None:
            read: dict[str, Any] = {} if plan is None else {"values": plan.reads_values, "keep": plan.kept}
            self.probe = AttentionProbe(
                teacher,
                [] if plan is None else plan.teacher_layers.values(),
                whole=networks is not None and networks.reads_teacher,
                dtype=teacher_dtype,
                compiled=compile_teacher,
                **read,
            )
            self.handles += self.probe.handles
        if plan is not None:
            self.handles += hook_attention(student, dict.fromkeys(plan.at, self._attend), skips=self._skips)
        self.remove = weakref.finalize(owner, _remove, self.handles)

    def _attend(self, call: AttentionCall) -> AttentionCall | Tensor:
        step = self.scope.record
        return call if step is None else step.attend(call)

    def _skips(self, layer: int) -> Skipped:
        return "" if self.plan is None or self.scope.record is None else self.plan.at[layer].skips

    def _masks(self) -> Sequence[Tensor] | None:
        step = self.scope.record
        return None if step is None else step.masks


def _remove(handles: list[Removable]) -> None:
    for handle in handles:
        handle.remove()
