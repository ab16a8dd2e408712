"""A teacher, a student and the rules between them, as one module for any training loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_transfer.attention import POOL
from attention_transfer.errors import UserError
from attention_transfer.transfer.binding import Binding, Removable
from attention_transfer.transfer.heads import HeadPairs, head_divergences
from attention_transfer.transfer.networks import NetworkLosses
from attention_transfer.transfer.plan import Plan, Step, named
from attention_transfer.transfer.rule import AttentionRule, NetworkRule, Rule, Weighted
from attention_transfer.vit import (
    Pairing,
    attention_modules,
    capture,
    carries_gradient,
    check_part,
    check_shared_drop_path,
    describe,
    half_precision,
    input_for,
    library_of,
    logits_of,
)

_log = logging.getLogger(__name__)


class TransferOutput(NamedTuple):
    """What one forward of [`AttentionTransfer`][attention_transfer.AttentionTransfer] gives.

    It is a tuple, in which DDP and FSDP find the tensors.

    Attributes:
        logits: the student's class logits, (B, classes).
        losses: each loss rule's value, the mean over its layers, before its weight.
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
    It runs only as far as the last queries and keys that a rule uses. Where it was made for other input normalisation
    or another image size than the student, it gets the same images converted.

    Args:
        teacher: the network whose attention is transferred; its parameters stop requiring gradients. `None` where
            no rule reads it.
        student: the network that is trained.
        rules: `Copy`, `Distill`, `Guide`, `LogitKD`, … ; none is plain training of the student.
        pairing: how a teacher of other depth, heads, patch grid or prefix tokens is mapped; default `Pairing()`.
        share_drop_path: in training, drop the same residual branches in teacher and student (as the paper does).
        teacher_dtype: autocast the teacher alone to this precision, e.g. `torch.bfloat16`; default that of the student.
            A teacher with half-precision weights runs in their precision.
        compile_teacher: run the teacher alone through `torch.compile`.

    Attributes:
        progress: share of the training that is done, from 0 to 1; set it before a step where a rule's weight falls.

    Raises:
        UserError: the pair does not fit, or a rule cannot bind it; every reason is listed.

    Example:
        ```python
        transfer = AttentionTransfer(teacher, student, [Distill()])
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
        pairing: Pairing | None = None,
        share_drop_path: bool = False,
        teacher_dtype: torch.dtype | None = None,
        compile_teacher: bool = False,
    ) -> None:
        super().__init__()
        _check(teacher, student, rules, pairing, share_drop_path)
        for role, network in (("teacher", teacher), ("student", student)):
            if network is not None and (part := check_part(network)):
                _log.debug("the %s is %s of a %s", role, part, type(network).__name__)
        self.student = student
        self.rules = tuple(rules)
        self.share_drop_path = share_drop_path
        self.progress = 0.0
        self.pairing = pairing or Pairing()
        self._teacher_dtype, self._compile_teacher = teacher_dtype, compile_teacher
        taught = any(rule.needs_teacher for rule in rules)
        self._teacher = _Unregistered(teacher if taught else None)
        self._input: nn.Module = nn.Identity() if self.teacher is None else input_for(self.teacher, student)
        plan = self._plan()
        network_rules = named([rule for rule in rules if isinstance(rule, NetworkRule)])
        self.networks = NetworkLosses(teacher, student, network_rules, self.pairing) if network_rules else None
        self.head_pairs = HeadPairs(plan.student.depth, plan.student.heads) if plan and plan.matches_heads else None
        self._binding = self._bind(plan)  # attaches to the networks; nothing is refused from here on
        if self.teacher is not None:
            self.teacher.eval().requires_grad_(False)
            if (half := half_precision(self.teacher)) is not None:
                _log.debug("the teacher runs in the precision of its weights, %s; the rules compute in float32", half)

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher, or `None` where no rule reads it."""
        return self._teacher.network

    @property
    def teacher_depth(self) -> int:
        """How many of the teacher's blocks run: those up to the last that a rule reads, or all for its output."""
        if self.teacher is None:
            return 0
        plan = self._binding.plan
        read = [] if plan is None else list(plan.teacher_layers.values())
        whole = POOL in read or (self.networks is not None and self.networks.reads_teacher)
        return describe(self.teacher).depth if whole else max(read) + 1

    def forward(self, images: Tensor) -> TransferOutput:
        """Run teacher and student on a batch of images, (B, channels, height, width), normalised for the student.

        The first forward with gradients logs how the losses are computed, which may be otherwise in those without.
        """
        binding = self._binding
        if binding.released:
            raise RuntimeError("this AttentionTransfer was released; make a new one")
        if not self.rules:
            return TransferOutput(logits_of(self.student(images)), {}, {})
        masks = binding.drop_path.draw(len(images), images.device) if binding.drop_path and self.training else None
        logs = not torch.compiler.is_compiling() and torch.is_grad_enabled() and not binding.logged
        step = Step(binding.plan, self, self.head_pairs, masks, {} if logs else None)
        with nullcontext() if binding.outputs is None else binding.outputs.watching() as outputs:
            teacher_logits = self._run_teacher(images, step)
            with binding.scope.run(step):
                logits = logits_of(self.student(images))
        losses = {} if binding.plan is None else self._attention_losses(binding.plan, step)
        if self.networks is not None and outputs is not None:
            losses |= self.networks.losses(self.student, logits, teacher_logits, outputs)
        return TransferOutput(logits, losses, self.weights())

    def weights(self) -> dict[str, float]:
        """Each loss rule's weight now, by name; `progress`, the share of the training that is done, decides."""
        plan = self._binding.plan
        rules: dict[str, Weighted] = {} if plan is None else {bound.name: bound.rule for bound in plan.losses}
        if self.networks is not None:
            rules |= self.networks.rules
        return {name: rule.weight_at(self.progress) for name, rule in rules.items()}

    def attach(self, handles: Iterable[Removable]) -> None:
        """Leave it to `release` to remove these too: other hooks on the student or the teacher in a training."""
        self._binding.handles.extend(handles)

    def release(self) -> None:
        """Take everything off the student and the teacher that this module attached; it can't be used afterwards."""
        self._binding.released = True
        self._binding.remove()

    def unused_rows(self) -> list[tuple[nn.Parameter, slice]]:
        """Rows of the student's fused projections that no forward uses, because their queries and keys are copied.

        They get zeros for a gradient; an optimiser that decays weights should leave them out.
        """
        if self._binding.plan is None:
            return []
        modules, library = attention_modules(self.student), library_of(self.student)
        copied = [modules[layer] for layer, layer_plan in self._binding.plan.at.items() if layer_plan.skips]
        fused = [linear for module in copied for linear in library.projections(module).get("qkv", ())]
        parameters = [p for linear in fused for p in linear.parameters()]
        return [(p, slice(0, 2 * p.shape[0] // 3)) for p in parameters]

    def _bind(self, plan: Plan | None) -> Binding:
        return Binding(
            self,
            self.teacher,
            self.student,
            plan,
            self.networks,
            share_drop_path=self.share_drop_path,
            teacher_dtype=self._teacher_dtype,
            compile_teacher=self._compile_teacher,
        )

    def _plan(self) -> Plan | None:
        rules = [rule for rule in self.rules if isinstance(rule, AttentionRule)]
        if not rules or self.teacher is None:
            return None
        return Plan(self.teacher, self.student, rules, self.pairing)

    def _run_teacher(self, images: Tensor, step: Step) -> Tensor | None:
        """The teacher's forward; its calls go into the step, its logits come back where a rule reads them."""
        binding = self._binding
        if binding.probe is None:
            return None
        with binding.scope.run(step):
            calls, output = binding.probe.run(self._input(images))
        step.teacher_calls.update(calls)
        if binding.plan is not None and self.head_pairs is not None:
            self._match_heads(binding.plan, self.head_pairs, images, step)
        return logits_of(output) if self.networks is not None and self.networks.reads_teacher_logits else None

    def _attention_losses(self, plan: Plan, step: Step) -> dict[str, Tensor]:
        scope = self._binding.scope
        if not torch.compiler.is_compiling() or scope.recomputes():
            self._check_gradients(step)
        if step.implementations is not None:
            self._binding.logged = True
            for (name, implementation), layers in step.implementations.items():
                _log.debug("%s in layers %s: %s", name, ", ".join(map(str, layers)), implementation)
        losses = {bound.name: step.loss(bound) for bound in plan.losses}
        for loss in losses.values():  # a backward pass may come through a loss and not through the logits
            scope.recall(loss, step)
        return losses

    @torch.no_grad()
    def _match_heads(self, plan: Plan, head_pairs: HeadPairs, images: Tensor, step: Step) -> None:
        """Match the heads on the first batch, by the student's attention as it is then."""
        missing = head_pairs.missing(plan.at)
        if not missing:
            return
        with capture(self.student, layers=missing) as calls:
            self.student(images)
        for call in calls:
            divergences = head_divergences(call.maps().float(), plan.whole_maps(step.teacher_calls, call.layer).float())
            head_pairs.set(call.layer, divergences)

    def _check_gradients(self, step: Step) -> None:
        for call in step.student_calls():
            if not carries_gradient(self.student, call):
                raise UserError(
                    f"the queries of block {call.layer} carry no gradient, so no rule can train them: re-entrant "
                    f"gradient checkpointing hides them; use the other kind ({library_of(self.student).not_reentrant})"
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

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle has all but the hooks, and gets its own; a deep copy shares the frozen teacher."""
        return {name: value for name, value in self.__dict__.items() if name != "_binding"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Bind the networks of a copy."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._binding = self._bind(self._plan())


class _Unregistered:
    """Holds the teacher, so that it is neither trained nor saved with the student, and shared by deep copies."""

    def __init__(self, network: nn.Module | None) -> None:
        self.network = network

    def __deepcopy__(self, memo: dict[int, Any]) -> _Unregistered:
        return self


def _check(
    teacher: nn.Module | None,
    student: nn.Module,
    rules: Sequence[Rule],
    pairing: Pairing | None,
    share_drop_path: bool,
) -> None:
    """Refuse what no pair can satisfy."""
    unknown = [type(rule).__name__ for rule in rules if not isinstance(rule, AttentionRule | NetworkRule)]
    if unknown:
        raise UserError(f"{', '.join(unknown)} is no rule; derive it from OperandRule, LossRule or NetworkRule")
    taught = [type(rule).__name__ for rule in rules if rule.needs_teacher]
    if not taught and (share_drop_path or pairing is not None):
        raise UserError("share_drop_path and pairing need rules on a teacher: without them the teacher does not run")
    if taught and teacher is None:
        raise UserError(f"{', '.join(taught)} needs a teacher; pass one")
    if taught and teacher is student:
        raise UserError("teacher and student are the same object; make the student with student_like(teacher, …)")
    if share_drop_path and teacher is not None:
        check_shared_drop_path(student, teacher)
