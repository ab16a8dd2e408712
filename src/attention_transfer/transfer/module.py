"""A teacher, a student and the rules between them, as one module for any training loop."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.errors import UserError
from attention_transfer.transfer.bond import Bond, named
from attention_transfer.transfer.heads import HeadPairs, head_divergences
from attention_transfer.transfer.networks import NetworkLosses
from attention_transfer.transfer.rule import AttentionRule, NetworkRule, Rule, Weighted
from attention_transfer.transfer.step import Step, bind_blocks
from attention_transfer.vit import (
    POOL,
    AttentionCall,
    AttentionProbe,
    InputFor,
    Pairing,
    Replay,
    SharedDropPath,
    TapHandle,
    attention_modules,
    capture,
    carries_gradient,
    check_part,
    check_shared_drop_path,
    describe,
    half_precision,
    logits_of,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TransferOutput:
    """What one forward of [`AttentionTransfer`][attention_transfer.AttentionTransfer] gives.

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


torch.utils._pytree.register_dataclass(TransferOutput)  # DistributedDataParallel looks for tensors in outputs


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
        attention = [rule for rule in rules if isinstance(rule, AttentionRule)]
        self._pairing = pairing or Pairing()
        bond = Bond(teacher, student, attention, self._pairing) if attention and teacher is not None else None
        self.student = student
        self.rules = tuple(rules)
        self.share_drop_path = share_drop_path
        self._options: dict[str, Any] = {
            "pairing": pairing,
            "share_drop_path": share_drop_path,
            "teacher_dtype": teacher_dtype,
            "compile_teacher": compile_teacher,
        }
        self._bond = bond
        # In a tuple, so that it is not registered: neither trained nor saved with the student.
        self._unregistered: tuple[nn.Module, ...] = ()
        self.networks = _network_losses(teacher, student, rules, self._pairing)
        self._drop_path: SharedDropPath | None = None
        self.head_pairs: HeadPairs | None = None
        self._replay: Replay[Step] = Replay(student)  # attaches to the student, as all below; nothing is refused now
        handles = [self._replay.handle, *([] if self.networks is None else self.networks.handles)]
        self.progress = 0.0
        if teacher is not None and any(rule.needs_teacher for rule in rules):
            self._unregistered = (teacher.eval().requires_grad_(False),)
            if (half := half_precision(teacher)) is not None:
                _log.debug("the teacher runs in the precision of its weights, %s; the rules compute in float32", half)
            self._input = InputFor(describe(teacher), describe(student))
            if share_drop_path:
                self._drop_path = SharedDropPath(student, teacher, partial(_masks, self._replay))
                handles += self._drop_path.handles
            seen: dict[str, Any] = {} if bond is None else {"values": bond.reads_values, "keep": bond.kept}
            self._probe = AttentionProbe(
                teacher,
                [] if bond is None else bond.teacher_layers.values(),
                whole=self.networks is not None and self.networks.reads_teacher,
                dtype=teacher_dtype,
                compiled=compile_teacher,
                **seen,
            )
            handles += self._probe.handles
        if bond is not None:
            self.head_pairs = HeadPairs(bond.student.depth, bond.student.heads) if _matches(bond) else None
            handles += bind_blocks(student, bond, self._replay, self.head_pairs)
        self._released = False
        self._said = False
        self._handles = handles
        self._release = weakref.finalize(self, _remove, handles)

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher, or `None` where no rule reads it."""
        return self._unregistered[0] if self._unregistered else None

    @property
    def pairing(self) -> Pairing:
        """How the teacher's layers, heads and tokens are mapped to the student's."""
        return self._pairing

    @property
    def teacher_depth(self) -> int:
        """How many of the teacher's blocks run: those up to the last that a rule reads, or all for its output."""
        if self.teacher is None:
            return 0
        read = () if self._bond is None else self._bond.teacher_layers.values()
        whole = POOL in read or (self.networks is not None and self.networks.reads_teacher)
        return describe(self.teacher).depth if whole else max(read) + 1

    def forward(self, images: Tensor) -> TransferOutput:
        """Run teacher and student on a batch of images, (B, channels, height, width), normalised for the student.

        The first forward with gradients logs how the losses are computed, which may be otherwise in those without.
        """
        if self._released:
            raise RuntimeError("this AttentionTransfer was released; make a new one")
        if not self.rules:
            return TransferOutput(logits_of(self.student(images)), {}, {})
        masks = self._drop_path.draw(len(images), images.device) if self._drop_path and self.training else None
        says = not torch.compiler.is_compiling() and torch.is_grad_enabled() and not self._said
        step = Step(self, masks, {} if says else None)
        with nullcontext() if self.networks is None else self.networks.watching() as watches:
            known = self._run_teacher(images, step)
            with self._replay.step(step):
                logits = logits_of(self.student(images))
        losses = {} if self._bond is None else self._attention_losses(self._bond, step)
        if self.networks is not None and watches is not None:
            losses |= self.networks.losses(self.student, logits, known, watches)
        return TransferOutput(logits, losses, self.weights())

    def weights(self) -> dict[str, float]:
        """Each loss rule's weight now, by name; `progress`, the share of the training that is done, decides."""
        rules: dict[str, Weighted] = {}
        if self._bond is not None:
            rules |= {name: self._bond.loss(index) for name, index in self._bond.losses.items()}
        if self.networks is not None:
            rules |= self.networks.rules
        return {name: rule.weight_at(self.progress) for name, rule in rules.items()}

    def _run_teacher(self, images: Tensor, step: Step) -> Tensor | None:
        """The teacher's forward; its calls go into the step, its logits come back where a rule reads them."""
        if self.teacher is None:
            return None
        with self._replay.step(step):
            calls, output = self._probe.run(self._input(images))
        step.teacher_calls.update(calls)
        if self._bond is not None:
            self._pair_heads(self._bond, images, step)
        return logits_of(output) if self.networks is not None and self.networks.reads_teacher_logits else None

    def _attention_losses(self, bond: Bond, step: Step) -> dict[str, Tensor]:
        self._check_gradients(step.student_calls)
        if step.ways is not None:
            self._say(bond, step.ways)
        losses = {name: self._loss(bond, index, step) for name, index in bond.losses.items()}
        for loss in losses.values():  # a backward pass may come through a loss and not through the logits
            self._replay.remember(loss, step)
        return losses

    def attach(self, handles: Iterable[TapHandle]) -> None:
        """Leave it to `release` to remove these too: what else listens to the student or the teacher in a training."""
        self._handles.extend(handles)

    def release(self) -> None:
        """Take everything off the student and the teacher that this module attached; it can't be used afterwards."""
        self._released = True
        self._release()

    def unused_rows(self) -> list[tuple[nn.Parameter, slice]]:
        """Rows of the student's fused projections that no forward uses, because their queries and keys are copied.

        They get zeros for a gradient; an optimiser that decays weights should leave them out.
        """
        if self._bond is None:
            return []
        modules = attention_modules(self.student)
        copied = [modules[layer] for layer in self._bond.layers if self._bond.skips(layer)]
        fused = [getattr(module, "qkv", None) for module in copied]
        parameters = [p for linear in fused if isinstance(linear, nn.Linear) for p in linear.parameters()]
        return [(p, slice(0, 2 * p.shape[0] // 3)) for p in parameters]

    def _loss(self, bond: Bond, index: int, step: Step) -> Tensor:
        """A rule's loss, the mean over its layers."""
        rule, losses = bond.loss(index), []
        for layer in bond.bound[index]:
            if (index, layer) in step.attended:
                losses.append(step.attended[index, layer])
                continue
            call = step.student_calls[index, layer]
            losses.append(rule.layer_loss(call, step.teacher_call(bond, index, layer, self.head_pairs)))
        return torch.stack(losses).mean()

    def _say(self, bond: Bond, ways: dict[tuple[int, str], list[int]]) -> None:
        """Log how the losses are computed, once."""
        self._said = True
        names = {index: name for name, index in bond.losses.items()}
        for (index, way), layers in ways.items():
            _log.debug("%s in layers %s: %s", names[index], ", ".join(map(str, layers)), way)

    @torch.no_grad()
    def _pair_heads(self, bond: Bond, images: Tensor, step: Step) -> None:
        """Match the heads on the first batch, by the student's attention as it is then."""
        missing = [] if self.head_pairs is None else self.head_pairs.missing(bond.layers)
        if self.head_pairs is None or not missing:
            return
        with capture(self.student, layers=missing) as calls:
            self.student(images)
        for call in calls:
            divergences = head_divergences(call.maps().float(), bond.whole_maps(step.teacher_calls, call.layer).float())
            self.head_pairs.set(call.layer, divergences)

    def _check_gradients(self, calls: dict[tuple[int, int], AttentionCall]) -> None:
        if torch.compiler.is_compiling() and not self._replay.checkpoints():
            return
        for (_, layer), call in calls.items():
            if not carries_gradient(self.student, call):
                raise UserError(
                    f"the queries of block {layer} carry no gradient, so no rule can train them: re-entrant gradient "
                    "checkpointing hides them; use the other kind (timm.layers.set_reentrant_ckpt(False), or for "
                    "transformers gradient_checkpointing_kwargs={'use_reentrant': False})"
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
        twin = AttentionTransfer(self.teacher, copy.deepcopy(self.student, memo), self.rules, **self._options)
        memo[id(self)] = twin
        twin.__setstate__(self._state())
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds teacher and student, and binds them again; what else was attached stays behind."""
        return _bound, (self.teacher, self.student, self.rules, self._options), self._state()

    def _state(self) -> dict[str, Any]:
        """What a copy takes over, beside what it is made of."""
        return {
            "training": self.training,
            "progress": self.progress,
            "networks": None if self.networks is None else self.networks.state_dict(),
            "start": None if self.networks is None else self.networks.start,
            "head_pairs": None if self.head_pairs is None else self.head_pairs.state_dict(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over the state of the one that this is a copy of."""
        self.training, self.progress = state["training"], state["progress"]
        if self.networks is not None:
            self.networks.load_state_dict(state["networks"])
            self.networks.start = state["start"]
        if self.head_pairs is not None:
            self.head_pairs.load_state_dict(state["head_pairs"])


def _bound(
    teacher: nn.Module | None, student: nn.Module, rules: Sequence[Rule], options: dict[str, Any]
) -> AttentionTransfer:
    return AttentionTransfer(teacher, student, rules, **options)


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


def _network_losses(
    teacher: nn.Module | None, student: nn.Module, rules: Sequence[Rule], pairing: Pairing
) -> NetworkLosses | None:
    chosen = {name: rules[index] for name, index in named(rules, NetworkRule).items()}
    own = {name: rule for name, rule in chosen.items() if isinstance(rule, NetworkRule)}
    return NetworkLosses(teacher, student, own, pairing) if own else None


def _matches(bond: Bond) -> bool:
    return bond.pairing.heads == "match" and bond.layers != (POOL,)


def _masks(replay: Replay[Step]) -> Sequence[Tensor] | None:
    step = replay.state()
    return None if step is None else step.masks


def _remove(handles: list[TapHandle]) -> None:
    for handle in handles:
        handle.remove()
