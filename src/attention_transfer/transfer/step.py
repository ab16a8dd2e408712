"""One forward of teacher and student: what it is run with, and what its blocks take from the teacher and leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attention_transfer.transfer.bond import Bond
from attention_transfer.transfer.heads import HeadPairs
from attention_transfer.vit import AttentionCall, Replay, Skipped, TapHandle, in_backward, listen, may_run_again


@dataclass(frozen=True)
class Step:
    """What one forward of student and teacher is run with, and what was seen of them.

    Attributes:
        owner: the `AttentionTransfer`. It lives until the backward pass, which may run blocks again, and needs what it
            attached.
        masks: drop-path masks that teacher and student share.
        ways: to note how each rule's loss is computed: in which layers, by the rule and the way.
        teacher_calls: by the teacher's layers.
        student_calls: by rule and layer.
        attended: losses that came with the attention, by rule and layer.
        mapped: the teacher's calls as the student can take them, by rule and layer.
    """

    owner: nn.Module
    masks: Sequence[Tensor] | None
    ways: dict[tuple[int, str], list[int]] | None
    teacher_calls: dict[int, AttentionCall] = field(default_factory=dict)
    student_calls: dict[tuple[int, int], AttentionCall] = field(default_factory=dict)
    attended: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    mapped: dict[tuple[int, int], AttentionCall] = field(default_factory=dict)

    def teacher_call(self, bond: Bond, index: int, layer: int, head_pairs: HeadPairs | None) -> AttentionCall:
        """The teacher's call for a rule and a layer of the student, mapped once."""
        if (index, layer) not in self.mapped:
            heads = None if head_pairs is None else head_pairs.of(layer)
            self.mapped[index, layer] = bond.teacher_call(self.teacher_calls, index, layer, heads)
        return self.mapped[index, layer]

    def release(self, bond: Bond, layer: int) -> None:
        """Let go of the teacher's call for a layer of the student that has all it needs of it."""
        for place in [place for place in self.mapped if place[1] == layer]:
            del self.mapped[place]
        if bond.is_last_use(layer):
            self.teacher_calls.pop(bond.teacher_layers[layer], None)


def bind_blocks(student: nn.Module, bond: Bond, replay: Replay[Step], head_pairs: HeadPairs | None) -> list[TapHandle]:
    """Let the student's blocks take the teacher's operands and be heard, in the steps of `replay` and nowhere else."""

    def hear(call: AttentionCall) -> AttentionCall | Tensor:
        step = replay.state()
        if step is None:
            return call
        for index, rule in bond.copies(call.layer):
            call = rule.operands(call, step.teacher_call(bond, index, call.layer, head_pairs))
        # Gradient checkpointing runs blocks again in the backward pass; their losses are those of the forward pass.
        again = not torch.compiler.is_compiling() and in_backward()
        output, waits = _attended(bond, step, call, head_pairs, again=again)
        if not (waits or again or torch.compiler.is_compiling() or may_run_again()):
            step.release(bond, call.layer)
        return call if output is None else output

    def skips(layer: int) -> Skipped:
        return "" if replay.state() is None else bond.skips(layer)

    return listen(student, dict.fromkeys(bond.layers, hear), skips=skips)


def _attended(
    bond: Bond, step: Step, call: AttentionCall, head_pairs: HeadPairs | None, *, again: bool
) -> tuple[Tensor | None, bool]:
    """The output of a block's attention where a loss came with it, and whether any loss is still to be computed."""
    output, waits = None, False
    for index in bond.losses_at(call.layer):
        rule, teacher_call = bond.loss(index), step.teacher_call(bond, index, call.layer, head_pairs)
        # A row becomes its logits here, among the block's operations, so that their gradients are formed with the
        # block's, and not those of all blocks before the first.
        heard = call if rule.row is None else call.query_row(rule.row).as_logits()
        way = rule.how(call, teacher_call) if step.ways is not None and not again else ""
        if step.ways is not None and way:
            step.ways.setdefault((index, way), []).append(call.layer)
        attended = rule.attend(call, teacher_call) if output is None else None
        if attended is None:
            waits = True
            if not again:
                step.student_calls[index, call.layer] = heard
            continue
        output = attended[0]
        if not again:
            step.attended[index, call.layer] = attended[1]
    return output, waits
