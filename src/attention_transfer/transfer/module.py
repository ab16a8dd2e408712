"""A teacher, a student and the rules between them, as one module for any training loop."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError, raise_all
from attention_transfer.transfer.copying import Copy
from attention_transfer.transfer.rule import LossRule, OperandRule, Rule
from attention_transfer.vit import (
    AttentionCall,
    Replay,
    SharedDropPath,
    TapHandle,
    ViTSpec,
    capture,
    carries_gradient,
    check_transfer,
    describe,
    listen,
)


@dataclass(frozen=True)
class TransferOutput:
    """What one forward of [`AttentionTransfer`][attention_transfer.AttentionTransfer] gives.

    Attributes:
        logits: the student's class logits, (B, classes).
        losses: each loss rule's value, summed over its layers, before its weight.
        weights: each loss rule's weight.
    """

    logits: Tensor
    losses: dict[str, Tensor]
    weights: dict[str, float]

    def total(self, task_loss: Tensor) -> Tensor:
        """The loss to minimise: the task's plus each rule's, weighted."""
        return sum((self.weights[name] * loss for name, loss in self.losses.items()), start=task_loss)


class AttentionTransfer(nn.Module):
    """Binds a student's attention to a frozen teacher's by a list of rules.

    The teacher is frozen, kept in eval mode, moved along by `.to()`, and absent from `parameters()` and `state_dict()`.

    Args:
        teacher: the network whose attention is transferred; its parameters stop requiring gradients. `None` where
            there are no rules.
        student: the network that is trained.
        rules: `Copy`, `Distill`, `Guide`, … ; none is plain training of the student.
        share_drop_path: in training, drop the same residual branches in teacher and student (as the paper does).

    Raises:
        UserError: the pair does not fit, or a rule cannot bind it; every reason is listed.

    Example:
        ```python
        transfer = AttentionTransfer(teacher, student, [Distill(weight=3.0)])
        output = transfer(images)
        output.total(F.cross_entropy(output.logits, targets)).backward()
        ```
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        student: nn.Module,
        rules: Sequence[Rule] = (),
        *,
        share_drop_path: bool = False,
    ) -> None:
        super().__init__()
        _check(teacher, student, rules, share_drop_path)
        self.student = student
        self.rules = tuple(rules)
        self.share_drop_path = share_drop_path
        # In a tuple, so that it is not registered: neither trained nor saved with the student.
        self._unregistered: tuple[nn.Module, ...] = ()
        if teacher is not None and rules:
            self._unregistered = (teacher.eval().requires_grad_(False),)
        depth = describe(student).depth if rules else 0
        self._losses = _named([rule for rule in self.rules if isinstance(rule, LossRule)], depth)
        self._replay: Replay[_Step] = Replay(student)
        copied = _by_layer([rule for rule in self.rules if isinstance(rule, OperandRule)], depth)
        handles = [self._replay.handle, *_replace_operands(student, copied, self._replay)]
        self._copied_layers = set(copied)
        self._drop_path = None
        if share_drop_path and teacher is not None:
            self._drop_path = SharedDropPath(student, teacher, partial(_masks, self._replay))
            handles += self._drop_path.handles
        self._release = weakref.finalize(self, _remove, handles)

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher, or `None` where there are no rules."""
        return self._unregistered[0] if self._unregistered else None

    def forward(self, images: Tensor) -> TransferOutput:
        """Run teacher and student on a batch of images, (B, channels, height, width)."""
        if not self._release.alive:
            raise RuntimeError("this AttentionTransfer was released; make a new one")
        weights = {name: rule.weight for name, (rule, _) in self._losses.items()}
        if self.teacher is None:
            return TransferOutput(self.student(images), {}, weights)
        masks = self._drop_path.draw(len(images), images.device) if self._drop_path and self.training else None
        with self._replay.step(_Step({}, masks)):
            step = _Step(self._run_teacher(self.teacher, images), masks)
        with self._replay.step(step), _calls(self.student, self._loss_layers()) as student_calls:
            logits: Tensor = self.student(images)
        by_layer = {call.layer: call for call in student_calls}
        self._check_gradients(by_layer)
        losses = {
            name: torch.stack([rule.layer_loss(by_layer[layer], step.teacher_calls[layer]) for layer in layers]).sum()
            for name, (rule, layers) in self._losses.items()
        }
        for loss in losses.values():  # a backward pass may come through a loss and not through the logits
            self._replay.remember(loss, step)
        return TransferOutput(logits, losses, weights)

    def release(self) -> None:
        """Take everything off the student and the teacher that this module attached; it can't be used afterwards."""
        self._release()

    def _run_teacher(self, teacher: nn.Module, images: Tensor) -> dict[int, AttentionCall]:
        needed = sorted(self._loss_layers() | self._copied_layers)
        with torch.no_grad(), capture(teacher, layers=needed) as calls:
            teacher(images)
        return {call.layer: call for call in calls}

    def _loss_layers(self) -> set[int]:
        return {layer for _, layers in self._losses.values() for layer in layers}

    def _check_gradients(self, calls: dict[int, AttentionCall]) -> None:
        if torch.compiler.is_compiling():
            return
        for layer, call in calls.items():
            if not carries_gradient(self.student, call):
                raise UserError(
                    f"the queries of block {layer} carry no gradient, so no rule can train them: re-entrant gradient "
                    "checkpointing hides them; use the other kind (timm.layers.set_reentrant_ckpt(False))"
                )

    def train(self, mode: bool = True) -> AttentionTransfer:
        """Set the student's mode; the teacher stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AttentionTransfer:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.teacher is not None and recurse:
            self.teacher._apply(fn)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionTransfer:
        """A copy with a student of its own; the frozen teacher is shared."""
        student = copy.deepcopy(self.student, memo)
        twin = AttentionTransfer(self.teacher, student, self.rules, share_drop_path=self.share_drop_path)
        memo[id(self)] = twin
        twin.training = self.training
        return twin


@dataclass(frozen=True)
class _Step:
    """What one forward of student and teacher is run with."""

    teacher_calls: dict[int, AttentionCall]
    masks: Sequence[Tensor] | None


def _by_layer(rules: Sequence[OperandRule], depth: int) -> dict[int, list[OperandRule]]:
    layers = {layer for rule in rules for layer in rule.chosen_layers(depth)}
    return {layer: [rule for rule in rules if layer in rule.chosen_layers(depth)] for layer in sorted(layers)}


def _replace_operands(
    student: nn.Module, copied: dict[int, list[OperandRule]], replay: Replay[_Step]
) -> list[TapHandle]:
    """Let the blocks of the student take operands from the teacher, in the steps of `replay` and nowhere else."""

    def replaced(call: AttentionCall) -> AttentionCall:
        step = replay.state()
        if step is None:
            return call
        for rule in copied[call.layer]:
            call = rule.operands(call, step.teacher_calls[call.layer])
        return call

    return listen(student, dict.fromkeys(copied, replaced)) if copied else []


def _masks(replay: Replay[_Step]) -> Sequence[Tensor] | None:
    step = replay.state()
    return None if step is None else step.masks


def _remove(handles: list[TapHandle]) -> None:
    for handle in handles:
        handle.remove()


@contextmanager
def _calls(student: nn.Module, layers: set[int]) -> Iterator[list[AttentionCall]]:
    if not layers:
        yield []
        return
    with capture(student, layers=sorted(layers)) as calls:
        yield calls


def _named(rules: Sequence[LossRule], depth: int) -> dict[str, tuple[LossRule, tuple[int, ...]]]:
    """Rules by name, with the layers they bind; rules of one kind are numbered from the second on."""
    named: dict[str, tuple[LossRule, tuple[int, ...]]] = {}
    for rule in rules:
        same = sum(type(other) is type(rule) for other, _ in named.values())
        named[rule.name if same == 0 else f"{rule.name}_{same + 1}"] = (rule, rule.chosen_layers(depth))
    return named


def _check(teacher: nn.Module | None, student: nn.Module, rules: Sequence[Rule], share_drop_path: bool) -> None:
    if not rules:
        if share_drop_path:
            raise UserError("share_drop_path needs rules: without them the teacher does not run")
        return
    if teacher is None:
        raise UserError(f"{', '.join(type(rule).__name__ for rule in rules)} needs a teacher; pass one")
    if teacher is student:
        raise UserError("teacher and student are the same object; make the student with student_like(teacher, …)")
    problems = list(check_transfer(teacher, student).problems)
    t, s = describe(teacher), describe(student)
    problems += [problem for rule in rules for problem in rule.problems(t, s)]
    raise_all(problems)
    raise_all(_contradictions(rules, s))


def _contradictions(rules: Sequence[Rule], student: ViTSpec) -> list[str]:
    """Losses on attention that is copied: there is nothing left to learn, and nothing that a gradient could reach."""

    def bound(rule: Rule) -> set[tuple[int, int]]:
        return set(product(rule.chosen_layers(student.depth), rule.chosen_heads(student.heads)))

    copied = {place for rule in rules if isinstance(rule, Copy) and rule.parts == "qk" for place in bound(rule)}
    problems = []
    for rule in rules:
        clash = sorted({layer for layer, _ in copied & bound(rule)}) if isinstance(rule, LossRule) else []
        if clash:
            problems.append(
                f"Copy and {type(rule).__name__} both bind layers {clash}, where copied attention can't learn; "
                "give them different layers or heads"
            )
    return problems
