"""Whether registers or artefacts in a teacher's attention will spoil its transfer, seen on images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from attention_transfer.evaluation.profile import LayerProfile, attention_profile
from attention_transfer.evaluation.records import ImageSequence
from attention_transfer.vit import ViTSpec, describe
from attention_transfer.vit.repair import HIGH_NORM

FEW = 0.5
"""Artefacts an image from which on a block is said to have some: one in every second image."""

MUCH = 0.1
"""Share of a row's attention from which on what gets it will spoil a transfer."""

Effect = Literal["harms", "note", "fine"]


@dataclass(frozen=True)
class Finding:
    """What was found, in a sentence that says what to do, and whether it harms a transfer."""

    effect: Effect
    message: str


@dataclass(frozen=True)
class AttentionReport:
    """What a network's attention is like on images.

    Attributes:
        images: how many were looked at.
        blocks: the figures of each block.
        findings: what they mean for a transfer, the worst first.
    """

    images: int
    blocks: tuple[LayerProfile, ...]
    findings: tuple[Finding, ...]


def examine_attention(network: nn.Module, images: ImageSequence, *, batch: int = 8) -> AttentionReport:
    """Look at the attention of a network on images.

    Args:
        network: a vision transformer in eval mode.
        images: any images; they are resized and cropped as in evaluation.
        batch: images a forward pass.

    Raises:
        UserError: there are no images.
    """
    blocks = attention_profile(network, images, batch=batch)
    return AttentionReport(len(images), blocks, findings_of(blocks, describe(network)))


def findings_of(blocks: Sequence[LayerProfile], spec: ViTSpec) -> tuple[Finding, ...]:
    """What the figures of all blocks mean for a transfer, the worst first."""
    patches = spec.grid[0] * spec.grid[1]
    found = [*_artefacts(blocks, patches), *_sinks(blocks, patches), *_prefix(blocks, spec)]
    if not found:
        found = [
            Finding("fine", "no artefacts and no sinks: each patch's attention is its own, and can be transferred")
        ]
    return tuple(sorted(found, key=lambda finding: ("harms", "note", "fine").index(finding.effect)))


def _artefacts(blocks: Sequence[LayerProfile], patches: int) -> list[Finding]:
    there = [block for block in blocks if block.high_norm * patches >= FEW]
    if not there:
        return []
    first, worst = there[0], max(there, key=lambda block: block.sink_mass)
    most = max(block.high_norm * patches for block in there)
    what = (
        f"from block {first.layer} on, up to {most:.1f} patches an image have outputs of more than {HIGH_NORM:g} times "
        f"the median norm; sinks get {100 * worst.sink_mass:.0f} % of the attention in block {worst.layer}"
    )
    if worst.sink_mass < MUCH:
        return [Finding("note", f"{what}, which is little: maps can be transferred as they are")]
    before = f'transfer the blocks before (layers="first {first.layer}"), ' if first.layer else ""
    return [
        Finding(
            "harms",
            f"artefacts: {what}. A student would learn to look at patches that mean nothing to it; {before}"
            "take a teacher with registers, or repair this one (train --repair, or load_vit(…, repair=…))",
        )
    ]


def _sinks(blocks: Sequence[LayerProfile], patches: int) -> list[Finding]:
    """Patches that draw attention without standing out by their norm."""
    ordinary = [block for block in blocks if block.high_norm * patches < FEW and block.sink_mass >= MUCH]
    if not ordinary:
        return []
    worst = max(ordinary, key=lambda block: block.sink_mass)
    return [
        Finding(
            "note",
            f"sinks: in block {worst.layer} {worst.sinks:.1f} patches an image get {100 * worst.sink_mass:.0f} % of "
            "the attention, and their norm is ordinary; look at the maps before you transfer that block",
        )
    ]


def _prefix(blocks: Sequence[LayerProfile], spec: ViTSpec) -> list[Finding]:
    registers = spec.tokens.prefix.count("register")
    worst = max(blocks, key=lambda block: block.prefix_mass)
    share = f"in block {worst.layer} {100 * worst.prefix_mass:.0f} % of the attention is on "
    if registers and worst.prefix_mass >= MUCH:
        return [
            Finding(
                "harms",
                f"registers: {share}the {len(spec.tokens.prefix)} tokens before the patches, {registers} of them "
                "registers, which a student without registers lacks; make the student with student_like(teacher), or "
                'add what they get to the class token (pairing.registers="to class")',
            )
        ]
    if spec.tokens.prefix and worst.prefix_mass >= 0.5:
        return [Finding("note", f"the class token is the sink: {share}it, and a student that has one can learn that")]
    return []
