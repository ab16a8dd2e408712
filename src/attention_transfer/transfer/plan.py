"""The rules bound to a pair of networks, settled once before any training, and one forward by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from attention_transfer.attention import POOL, AttentionCall
from attention_transfer.errors import UserError, raise_all
from attention_transfer.hooks import Skipped, in_backward, may_run_again
from attention_transfer.transfer.heads import HeadPairs
from attention_transfer.transfer.rule import AttentionRule, CallPair, LossRule, OperandRule, Rule
from attention_transfer.vit import Correspondence, Pairing, ViTSpec, check_transfer

R = TypeVar("R", bound=Rule)
A_co = TypeVar("A_co", bound=AttentionRule, covariant=True)


@dataclass(frozen=True, eq=False)
class BoundRule(Generic[A_co]):
    """A rule on the attention of a pair.

    Attributes:
        name: its name, which no other rule has.
        rule: the rule.
        layers: the student's layers that it binds.
    """

    name: str
    rule: A_co
    layers: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """What the rules do at a layer of the student.

    Attributes:
        teacher: the teacher's layer that is paired with it.
        replacing: rules that replace operands, in the order in which they were given.
        losses: rules that add a loss.
        is_last_use: whether no later layer of the student takes the attention that this one takes.
        skips: projections of the student that nobody uses, because their results are replaced.
    """

    teacher: int
    replacing: tuple[BoundRule[OperandRule], ...]
    losses: tuple[BoundRule[LossRule], ...]
    is_last_use: bool
    skips: Skipped


class Plan:
    """The rules on attention between a teacher and a student, laid out by layer.

    Args:
        teacher: the teacher.
        student: the student.
        rules: at least one.
        pairing: how unequal layers, heads and tokens are mapped.

    Attributes:
        at: what happens at each layer of the student, in their order.
        losses: the rules that add a loss.

    Raises:
        UserError: the pair does not fit, or a rule cannot bind it; every reason is listed.
    """

    def __init__(
        self, teacher: nn.Module, student: nn.Module, rules: Sequence[AttentionRule], pairing: Pairing
    ) -> None:
        report = check_transfer(teacher, student, pairing=pairing)
        self.teacher, self.student, self.pairing = report.teacher, report.student, pairing
        raise_all([*report.problems, *(p for rule in rules for p in self._problems(rule))])
        raise_all(_contradictions(rules, self.student))
        depth = self.student.depth
        names = {name: (rule, rule.chosen_layers(depth)) for name, rule in named(rules).items()}
        self.replacing = tuple(
            BoundRule(n, rule, at) for n, (rule, at) in names.items() if isinstance(rule, OperandRule)
        )
        self.losses = tuple(BoundRule(n, rule, at) for n, (rule, at) in names.items() if isinstance(rule, LossRule))
        self.rules: tuple[BoundRule[AttentionRule], ...] = (*self.replacing, *self.losses)
        self.reads_values = any(rule.reads_values for rule in rules)
        layers = sorted({layer for bound in self.rules for layer in bound.layers})
        pairs = {layer: pairing.teacher_layer(layer, self.teacher, self.student) for layer in layers}
        last_use = {pairs[layer]: layer for layer in sorted(layers, key=lambda n: (n == POOL, n))}
        self.at = {layer: self._layer(layer, pairs[layer], last_use[pairs[layer]] == layer) for layer in layers}
        self._correspondence = Correspondence(pairing, self.teacher, self.student)
        self._maps_calls = self._correspondence.maps_calls

    @property
    def matches_heads(self) -> bool:
        """Whether heads are paired by their likeness, on the first batch."""
        return self.pairing.heads == "match" and [*self.at] != [POOL]

    @property
    def teacher_layers(self) -> dict[int, int]:
        """The teacher's layer of each of the student's."""
        return {layer: plan.teacher for layer, plan in self.at.items()}

    def kept(self, call: AttentionCall) -> AttentionCall:
        """What the rules need of a teacher's call: its logits alone where all of them read the same single row."""
        if self.pairing.heads == "match":
            return call
        layers = [layer for layer, plan in self.at.items() if plan.teacher == call.layer]
        rows = {bound.rule.row for bound in self.rules if any(layer in bound.layers for layer in layers)}
        row = rows.pop() if len(rows) == 1 else None
        return call if row is None else call.query_row(row).as_logits()

    def teacher_call(
        self,
        calls: Mapping[int, AttentionCall],
        bound: BoundRule[AttentionRule],
        layer: int,
        heads: Tensor | None = None,
    ) -> AttentionCall:
        """The teacher's call that a rule gets for a layer of the student.

        Args:
            calls: the teacher's calls, by its own layers.
            bound: the rule.
            layer: the student's layer.
            heads: the teacher's head of each of the student's, (H_s,), where they are paired by "match".
        """
        call = calls[self.at[layer].teacher]
        if bound.rule.row is not None and call.q.shape[-2] > 1:  # not narrowed yet
            call = call.query_row(bound.rule.row)
        if heads is None and not self._maps_calls:
            return call
        return self._correspondence.seen(call, reading=bound.rule.reading, heads=heads)

    def whole_maps(self, calls: Mapping[int, AttentionCall], layer: int) -> Tensor:
        """The teacher's maps for a layer of the student, all its heads, over the student's tokens, (B, H_t, N, N)."""
        return self._correspondence.seen(calls[self.at[layer].teacher], reading="maps").maps()

    def _layer(self, layer: int, teacher: int, is_last_use: bool) -> LayerPlan:
        replacing = tuple(bound for bound in self.replacing if layer in bound.layers)
        copied = any(bound.rule.replaces >= {"q", "k"} and bound.rule.heads is None for bound in replacing)
        losses = tuple(bound for bound in self.losses if layer in bound.layers)
        return LayerPlan(teacher, replacing, losses, is_last_use, "qk" if copied else "")

    def _problems(self, rule: AttentionRule) -> list[str]:
        problems = rule.problems(self.teacher, self.student)
        if problems:
            return problems
        if rule.reading == "operands" and self.pairing.mixes(self.teacher, self.student):
            problems.append(
                f"{rule!r} takes single operands or heads, which another patch grid or averaged heads do not leave; "
                "bind whole maps of all heads, or a student of the teacher's grid and heads"
            )
        if rule.row == "pool" and self.pairing.heads == "match" and self.teacher.heads != self.student.heads:
            problems.append('the heads of a pooling head are not matched; pair them by heads="mean"')
        if self.pairing.problems(self.teacher, self.student):
            return problems  # said once, for the pair
        try:
            for layer in rule.chosen_layers(self.student.depth):
                self.pairing.teacher_layer(layer, self.teacher, self.student)
        except UserError as error:
            problems.append(str(error))
        return problems


@dataclass(frozen=True, eq=False)
class Step:
    """One forward of student and teacher.

    Attributes:
        plan: the rules.
        owner: the `AttentionTransfer`. It lives until the backward pass, which may run blocks again, and needs what it
            attached.
        head_pairs: the teacher's head of each of the student's, where they are matched.
        masks: drop-path masks that teacher and student share.
        implementations: to note how each rule's loss is computed: in which layers, by the rule and the implementation.
        teacher_calls: by the teacher's layers.
        pairs: what each loss is computed of, by its rule's name and the layer: the student's call, or a loss that came
            with the attention.
    """

    plan: Plan | None
    owner: nn.Module
    head_pairs: HeadPairs | None = None
    masks: Sequence[Tensor] | None = None
    implementations: dict[tuple[str, str], list[int]] | None = None
    teacher_calls: dict[int, AttentionCall] = field(default_factory=dict)
    pairs: dict[tuple[str, int], AttentionCall | Tensor] = field(default_factory=dict)
    _mapped: dict[int, dict[str, AttentionCall]] = field(default_factory=dict)

    def attend(self, call: AttentionCall) -> AttentionCall | Tensor:
        """The call that a block of the student makes instead of its own, or the output of its attention."""
        assert self.plan is not None
        layer = self.plan.at[call.layer]
        for copied in layer.replacing:
            call = copied.rule.operands(call, self._teacher_call(copied, call.layer))
        # Gradient checkpointing runs blocks again in the backward pass; their losses are those of the forward pass.
        again = in_backward()
        output, waits = None, False
        for bound in layer.losses:
            rule, teacher_call = bound.rule, self._teacher_call(bound, call.layer)
            if self.implementations is not None and not again:
                used = rule.implementation(call, teacher_call)
                if used:
                    self.implementations.setdefault((bound.name, used), []).append(call.layer)
            # A row becomes its logits here, among the block's operations, so that their gradients are formed with the
            # block's, and not those of all blocks before the first.
            seen = call if rule.row is None else call.query_row(rule.row).as_logits()
            attended = rule.attend(call, teacher_call) if output is None else None
            if attended is not None:
                output = attended[0]
            waits = waits or attended is None
            if not again:
                self.pairs[bound.name, call.layer] = seen if attended is None else attended[1]
        if not (waits or again or may_run_again()):  # the layer has all it needs
            self._mapped.pop(call.layer, None)
            if layer.is_last_use:
                self.teacher_calls.pop(layer.teacher, None)
        return call if output is None else output

    def loss(self, bound: BoundRule[LossRule]) -> Tensor:
        """A rule's loss, unweighted."""
        seen = [(layer, self.pairs[bound.name, layer]) for layer in bound.layers]
        pairs = {
            layer: CallPair(x, self._teacher_call(bound, layer)) for layer, x in seen if isinstance(x, AttentionCall)
        }
        if len(pairs) == len(seen):
            return bound.rule.loss([*pairs.values()])
        losses = [x if isinstance(x, Tensor) else bound.rule.layer_loss(*pairs[layer]) for layer, x in seen]
        return torch.stack(losses).mean()

    def student_calls(self) -> list[AttentionCall]:
        """The student's calls that losses are computed of."""
        return [seen for seen in self.pairs.values() if isinstance(seen, AttentionCall)]

    def _teacher_call(self, bound: BoundRule[AttentionRule], layer: int) -> AttentionCall:
        """The teacher's call for a rule and a layer of the student, mapped once."""
        assert self.plan is not None
        mapped = self._mapped.setdefault(layer, {})
        if bound.name not in mapped:
            heads = None if self.head_pairs is None else self.head_pairs.of(layer)
            mapped[bound.name] = self.plan.teacher_call(self.teacher_calls, bound, layer, heads)
        return mapped[bound.name]


def named(rules: Iterable[R]) -> dict[str, R]:
    """Rules by name; those of one name are numbered from the second on."""
    names: dict[str, R] = {}
    for rule in rules:
        same = sum(other.name == rule.name for other in names.values())
        names[rule.name if same == 0 else f"{rule.name}_{same + 1}"] = rule
    return names


def _contradictions(rules: Sequence[AttentionRule], student: ViTSpec) -> list[str]:
    """Losses on attention that is copied: there is nothing left to learn, and nothing that a gradient could reach."""

    def places(rule: AttentionRule) -> set[tuple[int, int]]:
        return set(product(rule.chosen_layers(student.depth), rule.chosen_heads(student.heads)))

    copying = {place: type(rule).__name__ for rule in rules if rule.replaces >= {"q", "k"} for place in places(rule)}
    problems = []
    for rule in rules:
        if rule.reads_values or not isinstance(rule, LossRule):  # a copied student's values are its own
            continue
        clash = sorted({place for place in places(rule) if place in copying})
        if clash:
            layers = sorted({layer for layer, _ in clash})
            problems.append(
                f"{copying[clash[0]]} and {type(rule).__name__} both bind layers {layers}, where copied attention "
                "can't learn; give them different layers or heads"
            )
    return problems
