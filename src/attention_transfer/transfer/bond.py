"""Which call of the teacher each rule gets for each layer of the student; settled once, before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import cast

from torch import Tensor, nn

from attention_transfer.errors import UserError, raise_all
from attention_transfer.transfer.copying import Copy
from attention_transfer.transfer.rule import AttentionRule, LossRule, OperandRule, Rule
from attention_transfer.vit import POOL, AttentionCall, Correspondence, Pairing, Skipped, ViTSpec, check_transfer


class Bond:
    """The rules between a teacher and a student, laid out by layer.

    Args:
        teacher: the teacher.
        student: the student.
        rules: at least one.
        pairing: how unequal layers, heads and tokens are mapped.

    Raises:
        UserError: the pair does not fit, or a rule cannot bind it; every reason is listed.
    """

    def __init__(
        self, teacher: nn.Module, student: nn.Module, rules: Sequence[AttentionRule], pairing: Pairing
    ) -> None:
        report = check_transfer(teacher, student, pairing=pairing)
        self.teacher, self.student = report.teacher, report.student
        self.rules = tuple(rules)
        self.pairing = pairing
        raise_all([*report.problems, *(p for rule in rules for p in self._problems(rule))])
        raise_all(_contradictions(rules, self.student))
        self.losses = named(self.rules, LossRule)
        self.bound = tuple(rule.chosen_layers(self.student.depth) for rule in self.rules)
        self.layers = tuple(sorted({layer for layers in self.bound for layer in layers}))
        self.teacher_layers = {layer: pairing.teacher_layer(layer, self.teacher, self.student) for layer in self.layers}
        last = {self.teacher_layers[layer]: layer for layer in sorted(self.layers, key=lambda n: (n == POOL, n))}
        self._last_uses = set(last.values())
        self._copies = {
            layer: [i for i, rule in enumerate(self.rules) if isinstance(rule, OperandRule) and layer in self.bound[i]]
            for layer in self.layers
        }
        self.reads_values = any(rule.reads_values for rule in rules)
        self._correspondence = Correspondence(pairing, self.teacher, self.student)

    def copies(self, layer: int) -> list[tuple[int, OperandRule]]:
        """The rules that replace a layer's operands, with their numbers."""
        return [(i, cast(OperandRule, self.rules[i])) for i in self._copies[layer]]

    def skips(self, layer: int) -> Skipped:
        """Which projections of a layer of the student nobody uses, where all its queries and keys are copied."""
        copied = any(
            isinstance(rule, Copy) and rule.parts == "qk" and rule.heads is None for _, rule in self.copies(layer)
        )
        return "queries and keys" if copied else ""

    def losses_at(self, layer: int) -> list[int]:
        """The numbers of the loss rules that bind a layer of the student."""
        return [index for index in self.losses.values() if layer in self.bound[index]]

    def is_last_use(self, layer: int) -> bool:
        """Whether no later layer of the student takes the attention that this one takes."""
        return layer in self._last_uses

    def kept(self, call: AttentionCall) -> AttentionCall:
        """What the rules need of a teacher's call: its logits alone where all of them read the same single row."""
        layers = {layer for layer, index in self.teacher_layers.items() if index == call.layer}
        rows = {rule.row for rule, bound in zip(self.rules, self.bound, strict=True) if layers & set(bound)}
        row = rows.pop() if len(rows) == 1 else None
        return call if row is None or self.pairing.heads == "match" else call.query_row(row).as_logits()

    def loss(self, index: int) -> LossRule:
        """The loss rule of a number."""
        return cast(LossRule, self.rules[index])

    def teacher_call(
        self, calls: Mapping[int, AttentionCall], index: int, layer: int, heads: Tensor | None
    ) -> AttentionCall:
        """The teacher's call that a rule gets for a layer of the student.

        Args:
            calls: the teacher's calls, by its own layers.
            index: number of the rule.
            layer: the student's layer.
            heads: the teacher's head of each of the student's, (H_s,), where they are paired by "match".
        """
        call, rule = calls[self.teacher_layers[layer]], self.rules[index]
        if rule.row is not None and call.q.shape[-2] > 1:  # not narrowed yet
            call = call.query_row(rule.row)
        return self._correspondence.seen(call, reading=rule.reading, heads=heads)

    def whole_maps(self, calls: Mapping[int, AttentionCall], layer: int) -> Tensor:
        """The teacher's maps for a layer of the student, all its heads, over the student's tokens, (B, H_t, N, N)."""
        return self._correspondence.seen(calls[self.teacher_layers[layer]], reading="maps").maps()

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


def named(rules: Sequence[Rule], kind: type[Rule]) -> dict[str, int]:
    """Places of the rules of a kind by name; those of one class are numbered from the second on."""
    names: dict[str, int] = {}
    for index, rule in enumerate(rules):
        if isinstance(rule, kind):
            same = sum(type(rules[other]) is type(rule) for other in names.values())
            names[rule.name if same == 0 else f"{rule.name}_{same + 1}"] = index
    return names


def _contradictions(rules: Sequence[AttentionRule], student: ViTSpec) -> list[str]:
    """Losses on attention that is copied: there is nothing left to learn, and nothing that a gradient could reach."""

    def bound(rule: AttentionRule) -> set[tuple[int, int]]:
        return set(product(rule.chosen_layers(student.depth), rule.chosen_heads(student.heads)))

    copied = {place for rule in rules if isinstance(rule, Copy) and rule.parts == "qk" for place in bound(rule)}
    problems = []
    for rule in rules:
        learns = isinstance(rule, LossRule) and not rule.reads_values  # a copied student's values are its own
        clash = sorted({layer for layer, _ in copied & bound(rule)}) if learns else []
        if clash:
            problems.append(
                f"Copy and {type(rule).__name__} both bind layers {clash}, where copied attention can't learn; "
                "give them different layers or heads"
            )
    return problems
