"""What would change if a student looked where its teacher looks: the teacher's attention in the place of its own.

Shapes: B variants of one image, H heads, N tokens, C classes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from attention_transfer.attention import AttentionCall
from attention_transfer.attention.rows import js
from attention_transfer.errors import UserError, raise_all
from attention_transfer.evaluation.views import seen
from attention_transfer.explorer.album import Picture
from attention_transfer.explorer.network import Attend, ExploredNetwork
from attention_transfer.transfer import Copy
from attention_transfer.vit import Pairing

_TOKENS = 8192  # of a batch of variants


@dataclass(frozen=True, eq=False)
class Effect:
    """What replaced attention changes.

    Attributes:
        before: the student's class probabilities, (C,); `None` without classes.
        after: those with the teacher's attention.
        prediction: Jensen–Shannon divergence of the two, in nats; `None` without classes.
        layers: by layer, the divergence of what the class token (or the patches' mean query) attends to, before and
            after, mean over heads, in nats.
    """

    before: Tensor | None
    after: Tensor | None
    prediction: float | None
    layers: tuple[float, ...]


@dataclass(frozen=True)
class HeadEffect:
    """What one head of the teacher changes in the place of the student's, alone.

    Attributes:
        layer: of the student.
        head: of both.
        change: Jensen–Shannon divergence of the predictions before and after, in nats; without classes, of what the
            class token attends to in the last layer.
    """

    layer: int
    head: int
    change: float


@torch.no_grad()
def effect(
    student: ExploredNetwork, teacher: ExploredNetwork, picture: Picture, layers: Sequence[int], head: int | None
) -> Effect:
    """Run the student with the teacher's queries and keys in some layers, of one head or of all.

    Raises:
        UserError: the pair does not fit, or there is no such layer or head.
    """
    _check(student, teacher, layers, head)
    copied = Copy(heads=None if head is None else [head])
    attend = {layer: partial(_copied, copied, _teachers(student, teacher, picture, layer)) for layer in layers}
    before = student.look(picture)
    logits, rows = student.run(seen(student.spec, picture.open())[0], attend)
    changes = [float(_js(own_HN.log(), row_BHN[0])) for own_HN, row_BHN in zip(before.rows, rows, strict=True)]
    if logits is None or before.logits is None:
        return Effect(None, None, None, tuple(changes))
    return Effect(
        before.logits.softmax(dim=-1), logits[0].softmax(dim=-1), float(_js(before.logits, logits[0])), tuple(changes)
    )


@torch.no_grad()
def head_effects(
    student: ExploredNetwork, teacher: ExploredNetwork, picture: Picture, cancelled: threading.Event
) -> list[HeadEffect]:
    """What each head of the teacher changes by itself, the largest change first; several variants run in one batch.

    Raises:
        UserError: the pair does not fit.
        Cancelled: nobody waits for it any more.
    """
    depth, heads = student.spec.depth, student.spec.heads
    _check(student, teacher, range(depth), 0)
    before = student.look(picture)
    image = seen(student.spec, picture.open())[0]
    variants = [(layer, head) for layer in range(depth) for head in range(heads)]
    found = []
    size = max(1, _TOKENS // student.spec.sequence)
    for start in range(0, len(variants), size):
        check(cancelled)
        batch = variants[start : start + size]
        attend: dict[int, Attend] = {
            layer: partial(_varied, batch, _teachers(student, teacher, picture, layer))
            for layer in {x for x, _ in batch}
        }
        logits_BC, rows = student.run(image.expand(len(batch), -1, -1, -1), attend)
        if logits_BC is not None and before.logits is not None:
            changes = js(before.logits.expand_as(logits_BC), logits_BC)
        else:
            changes = js(before.rows[-1].log().expand_as(rows[-1]), rows[-1]).mean(dim=-1)
        found += [HeadEffect(*variant, _clean(change)) for variant, change in zip(batch, changes.tolist(), strict=True)]
    return sorted(found, key=lambda each: -each.change)


class Cancelled(Exception):
    """Nobody waits for an answer any more."""


def check(cancelled: threading.Event) -> None:
    """Stop a long answer that nobody waits for."""
    if cancelled.is_set():
        raise Cancelled


def pair_problems(a: ExploredNetwork, b: ExploredNetwork) -> list[str]:
    """Why the attention of one network can't stand in the place of the other's, or be held against it."""
    found: list[str] = []
    one, other = a.spec, b.spec
    if one.grid != other.grid:
        grids = " and ".join("×".join(map(str, spec.grid)) for spec in (one, other))
        found.append(f"{a.label} and {b.label} have unlike patch grids ({grids}); choose networks with the same grid")
    if one.heads != other.heads:
        found.append(f"{a.label} has {one.heads} heads and {b.label} {other.heads}; choose networks with as many heads")
    if one.tokens != other.tokens:
        found.append(
            f"{a.label} and {b.label} have unlike special tokens ({one.tokens}; {other.tokens}); choose networks with "
            "the same"
        )
    return found


def divergence(rows_a_HN: Tensor, rows_b_HN: Tensor) -> float:
    """Jensen–Shannon divergence of rows that sum to one, mean over heads, in nats."""
    return float(_js(rows_a_HN.log(), rows_b_HN.log()))


def _check(student: ExploredNetwork, teacher: ExploredNetwork, layers: Sequence[int], head: int | None) -> None:
    problems = pair_problems(student, teacher)
    depth, heads = student.spec.depth, student.spec.heads
    problems += [
        f"{student.label} has no layer {n}; choose from 0 to {depth - 1}" for n in layers if not 0 <= n < depth
    ]
    if head is not None:
        if not 0 <= head < heads:
            problems.append(f"{student.label} has no head {head}; choose from 0 to {heads - 1}")
        problems += Copy(heads=[0]).problems(teacher.spec, student.spec) if heads > 1 else []
    raise_all(problems)


def _teachers(student: ExploredNetwork, teacher: ExploredNetwork, picture: Picture, layer: int) -> AttentionCall:
    """The teacher's call for a layer of the student: of the same relative depth."""
    return teacher.call(picture, Pairing().teacher_layer(layer, teacher.spec, student.spec))


def _copied(copied: Copy, teacher: AttentionCall, call: AttentionCall) -> AttentionCall:
    return copied.operands(call, teacher)


def _varied(batch: Sequence[tuple[int, int]], teacher: AttentionCall, call: AttentionCall) -> AttentionCall:
    """A call in which each variant of this layer has its own head of the teacher."""
    if call.mask is not None or teacher.mask is not None:
        raise UserError("single heads can't be replaced in models with attention masks or biases")
    q_BHND, k_BHND = call.q.clone(), call.k.clone()
    for place, (layer, head) in enumerate(batch):
        if layer == call.layer:
            one = replace(call, q=call.q[place, None], k=call.k[place, None], v=call.v[place, None])
            mixed = Copy(heads=[head]).operands(one, teacher)
            q_BHND[place], k_BHND[place] = mixed.q[0] * (mixed.scale / call.scale), mixed.k[0]
    return replace(call, q=q_BHND, k=k_BHND)


def _js(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    return js(logits_a, logits_b).mean().clamp_min(0)


def _clean(value: float) -> float:
    """A divergence that rounding has carried below 0 is 0."""
    return max(0.0, value)
