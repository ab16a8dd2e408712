"""A teacher, a student and the rules between them, as one module for any training loop."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from attention_transfer.attention import POOL, AttentionCall
from attention_transfer.errors import UserError
from attention_transfer.hooks import Scope, Skipped
from attention_transfer.transfer.heads import HeadPairs, head_divergences
from attention_transfer.transfer.networks import NetworkLosses, OutputWatches
from attention_transfer.transfer.plan import Plan, Step, named
from attention_transfer.transfer.rule import AttentionRule, NetworkRule, Rule, Weighted
from attention_transfer.vit import (
    AttentionProbe,
    Pairing,
    SharedDropPath,
    attention_modules,
    capture,
    carries_gradient,
    check_part,
    check_shared_drop_path,
    describe,
    half_precision,
    hook_attention,
    input_for,
    library_of,
    logits_of,
)

_log = logging.getLogger(__name__)


class Removable(Protocol):
    """A handle of something that was attached to a network."""

    def remove(self) -> None:
        """Take it off."""


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
        self._hooks = _Hooks(self, plan)  # attaches to the networks; nothing is refused from here on
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
        plan = self._hooks.plan
        read = [] if plan is None else list(plan.teacher_layers.values())
        whole = POOL in read or (self.networks is not None and self.networks.reads_teacher)
        return describe(self.teacher).depth if whole else max(read) + 1

    def forward(self, images: Tensor) -> TransferOutput:
        """Run teacher and student on a batch of images, (B, channels, height, width), normalised for the student.

        The first forward with gradients logs how the losses are computed, which may be otherwise in those without.
        """
        hooks = self._hooks
        if hooks.released:
            raise RuntimeError("this AttentionTransfer was released; make a new one")
        if not self.rules:
            return TransferOutput(logits_of(self.student(images)), {}, {})
        masks = hooks.drop_path.draw(len(images), images.device) if hooks.drop_path and self.training else None
        logs = not torch.compiler.is_compiling() and torch.is_grad_enabled() and not hooks.logged
        step = Step(hooks.plan, self, self.head_pairs, masks, {} if logs else None)
        with nullcontext() if hooks.outputs is None else hooks.outputs.watching() as outputs:
            teacher_logits = self._run_teacher(images, step)
            with hooks.scope.run(step):
                logits = logits_of(self.student(images))
        losses = {} if hooks.plan is None else self._attention_losses(hooks.plan, step)
        if self.networks is not None and outputs is not None:
            losses |= self.networks.losses(self.student, logits, teacher_logits, outputs)
        return TransferOutput(logits, losses, self.weights())

    def weights(self) -> dict[str, float]:
        """Each loss rule's weight now, by name; `progress`, the share of the training that is done, decides."""
        plan = self._hooks.plan
        rules: dict[str, Weighted] = {} if plan is None else {bound.name: bound.rule for bound in plan.losses}
        if self.networks is not None:
            rules |= self.networks.rules
        return {name: rule.weight_at(self.progress) for name, rule in rules.items()}

    def attach(self, handles: Iterable[Removable]) -> None:
        """Leave it to `release` to remove these too: other hooks on the student or the teacher in a training."""
        self._hooks.handles.extend(handles)

    def release(self) -> None:
        """Take everything off the student and the teacher that this module attached; it can't be used afterwards."""
        self._hooks.released = True
        self._hooks.remove()

    def unused_rows(self) -> list[tuple[nn.Parameter, slice]]:
        """Rows of the student's fused projections that no forward uses, because their queries and keys are copied.

        They get zeros for a gradient; an optimiser that decays weights should leave them out.
        """
        if self._hooks.plan is None:
            return []
        modules, library = attention_modules(self.student), library_of(self.student)
        copied = [modules[layer] for layer, layer_plan in self._hooks.plan.at.items() if layer_plan.skips]
        fused = [linear for module in copied for linear in library.projections(module).get("qkv", ())]
        parameters = [p for linear in fused for p in linear.parameters()]
        return [(p, slice(0, 2 * p.shape[0] // 3)) for p in parameters]

    def _plan(self) -> Plan | None:
        rules = [rule for rule in self.rules if isinstance(rule, AttentionRule)]
        if not rules or self.teacher is None:
            return None
        return Plan(self.teacher, self.student, rules, self.pairing)

    def _run_teacher(self, images: Tensor, step: Step) -> Tensor | None:
        """The teacher's forward; its calls go into the step, its logits come back where a rule reads them."""
        hooks = self._hooks
        if hooks.probe is None:
            return None
        with hooks.scope.run(step):
            calls, output = hooks.probe.run(self._input(images))
        step.teacher_calls.update(calls)
        if hooks.plan is not None and self.head_pairs is not None:
            self._match_heads(hooks.plan, self.head_pairs, images, step)
        return logits_of(output) if self.networks is not None and self.networks.reads_teacher_logits else None

    def _attention_losses(self, plan: Plan, step: Step) -> dict[str, Tensor]:
        scope = self._hooks.scope
        if not torch.compiler.is_compiling() or scope.recomputes():
            self._check_gradients(step)
        if step.implementations is not None:
            self._hooks.logged = True
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
                    "gradient checkpointing hides them; use the other kind (timm.layers.set_reentrant_ckpt(False), or "
                    "for transformers gradient_checkpointing_kwargs={'use_reentrant': False})"
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
        return {name: value for name, value in self.__dict__.items() if name != "_hooks"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Bind the networks of a copy."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._hooks = _Hooks(self, self._plan())


class _Unregistered:
    """Holds the teacher, so that it is neither trained nor saved with the student, and shared by deep copies."""

    def __init__(self, network: nn.Module | None) -> None:
        self.network = network

    def __deepcopy__(self, memo: dict[int, Any]) -> _Unregistered:
        return self


class _Hooks:
    """What an `AttentionTransfer` has attached to its networks."""

    def __init__(self, transfer: AttentionTransfer, plan: Plan | None) -> None:
        teacher, student, networks = transfer.teacher, transfer.student, transfer.networks
        library = library_of(student)
        self.plan = plan
        self.released = self.logged = False
        self.outputs = None if networks is None else OutputWatches(teacher, student, networks)  # may refuse the student
        self.scope: Scope[Step] = Scope(student, recomputes=lambda: library.recomputes(student))
        self.handles: list[Removable] = [*self.scope.handles, *(self.outputs.handles if self.outputs else ())]
        self.drop_path: SharedDropPath | None = None
        self.probe: AttentionProbe | None = None
        if teacher is not None:
            self._attach_teacher(transfer, teacher)
        if plan is not None:
            self.handles += hook_attention(student, dict.fromkeys(plan.at, self._attend), skips=self._skips)
        self.remove = weakref.finalize(transfer, _remove, self.handles)

    def _attach_teacher(self, transfer: AttentionTransfer, teacher: nn.Module) -> None:
        if transfer.share_drop_path:
            self.drop_path = SharedDropPath(transfer.student, teacher, self._masks)
            self.handles += self.drop_path.handles
        plan, networks = self.plan, transfer.networks
        read: dict[str, Any] = {} if plan is None else {"values": plan.reads_values, "keep": plan.kept}
        self.probe = AttentionProbe(
            teacher,
            [] if plan is None else plan.teacher_layers.values(),
            whole=networks is not None and networks.reads_teacher,
            dtype=transfer._teacher_dtype,
            compiled=transfer._compile_teacher,
            **read,
        )
        self.handles += self.probe.handles

    def _attend(self, call: AttentionCall) -> AttentionCall | Tensor:
        step = self.scope.record
        return call if step is None else step.attend(call)

    def _skips(self, layer: int) -> Skipped:
        return "" if self.plan is None or self.scope.record is None else self.plan.at[layer].skips

    def _masks(self) -> Sequence[Tensor] | None:
        step = self.scope.record
        return None if step is None else step.masks


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


def _remove(handles: list[Removable]) -> None:
    for handle in handles:
        handle.remove()
