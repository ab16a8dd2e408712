"""Which part of a teacher's attention belongs to which part of its student's, where the two are not alike.

Each step leaves a call as it is where nothing differs, and picks queries and keys where that is enough (layers, heads,
dropped tokens: dropping a key renormalises its row). Only where maps must be mixed (averaged heads, another patch grid)
are they formed: such a call has zero queries and keys, and the mixed maps, as logarithms, for its mask.

Shapes: B batch, H heads, N query tokens, M key tokens, D head dimension; `_t` teacher, `_s` student.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from attention_transfer.attention import POOL, AttentionCall, Tokens
from attention_transfer.config.pairing import PairingSettings
from attention_transfer.errors import UserError, raise_all
from attention_transfer.vit.libraries import ViTSpec

Reading = Literal["maps", "logits", "operands"]
"""What a rule reads from a call, which decides how it is mixed."""


@dataclass(frozen=True, kw_only=True)
class Pairing(PairingSettings):
    """How an unequal teacher is mapped to its student; its settings are those of `PairingSettings`."""

    def teacher_layer(self, layer: int, teacher: ViTSpec, student: ViTSpec) -> int:
        """The teacher's block for a block of the student.

        Raises:
            UserError: there is none.
        """
        if layer == POOL:
            return POOL
        if self.layers == "relative":
            return max(0, (layer + 1) * teacher.depth // student.depth - 1)
        if self.layers == "last":
            found = layer + teacher.depth - student.depth
            if found < 0:
                raise UserError(
                    f"block {layer} of the student has no block of the teacher, which is "
                    f"{student.depth - teacher.depth} blocks shorter; give the rule layers=, "
                    "the last ones, or pair by relative depth"
                )
            return found
        raise_all(self._wrong_list(teacher, student))
        return self.layers[layer] % teacher.depth

    def _wrong_list(self, teacher: ViTSpec, student: ViTSpec) -> list[str]:
        if isinstance(self.layers, str):
            return []
        if len(self.layers) == student.depth and all(-teacher.depth <= i < teacher.depth for i in self.layers):
            return []
        return [
            f"pairing.layers {list(self.layers)} must name one of the teacher's {teacher.depth} blocks for each of "
            f"the student's {student.depth}"
        ]

    def problems(self, teacher: ViTSpec, student: ViTSpec) -> list[str]:
        """Why the pair can't be mapped, a sentence each."""
        found = self._wrong_list(teacher, student)
        more, fewer = max(teacher.heads, student.heads), min(teacher.heads, student.heads)
        if more != fewer and self.heads == "same":
            found.append(
                f"teacher {teacher.name} has heads {teacher.heads} but the student has {student.heads}; pair them by "
                'heads="mean" or heads="match", or make the student with student_like(teacher, num_classes=…)'
            )
        if self.heads == "mean" and more % fewer:
            found.append(
                f"{teacher.heads} heads (teacher) and {student.heads} (student) can't be grouped evenly; pair them by "
                'heads="match"'
            )
        extra = [kind for kind in student.tokens.prefix if kind not in teacher.tokens.prefix]
        counts = {kind: student.tokens.prefix.count(kind) - teacher.tokens.prefix.count(kind) for kind in ("register",)}
        if extra or counts["register"] > 0 or student.tokens.suffix > teacher.tokens.suffix:
            found.append(
                f"the student has prefix tokens {student.tokens} and teacher {teacher.name} {teacher.tokens}, so "
                "that some of the student's have no attention to take; make the student with student_like(teacher, …)"
            )
        if self.registers == "to class" and not (teacher.class_token and student.class_token):
            found.append('pairing.registers="to class" needs a class token on both sides')
        return found

    def notes(self, teacher: ViTSpec, student: ViTSpec) -> list[str]:
        """What is mapped, and how, a sentence each."""
        found = []
        if teacher.depth != student.depth or not isinstance(self.layers, str):
            found.append(f"{student.depth} blocks take the attention of {teacher.depth}, paired by {self.layers!r}")
        if teacher.heads != student.heads and self.heads != "same":
            found.append(f"{student.heads} heads take the attention of {teacher.heads}, paired by {self.heads!r}")
        if teacher.grid != student.grid:
            found.append(
                f"maps of {teacher.grid[0]}×{teacher.grid[1]} patches are resampled to {student.grid[0]}×"
                f"{student.grid[1]}, which forms them and costs memory"
            )
        if teacher.tokens != student.tokens:
            how = "rows are renormalised" if self.registers == "drop" else "the class token gets their attention"
            found.append(f"prefix tokens {teacher.tokens} become {student.tokens}: {how}")
        return found

    def mixes(self, teacher: ViTSpec, student: ViTSpec) -> bool:
        """Whether maps must be formed, so that single operands can't be paired."""
        return (
            teacher.grid != student.grid
            or (self.heads == "mean" and teacher.heads > student.heads)
            or (self.registers == "to class" and teacher.tokens != student.tokens)
        )


class Correspondence:
    """Gives the teacher's calls the student's heads and tokens.

    Attributes:
        maps_calls: whether `seen` changes any call.
    """

    def __init__(self, pairing: Pairing, teacher: ViTSpec, student: ViTSpec) -> None:
        self.pairing = pairing
        self.teacher, self.student = teacher, student
        self.maps_calls = (
            teacher.heads != student.heads
            or (teacher.tokens, teacher.pool_tokens, teacher.grid)
            != (student.tokens, student.pool_tokens, student.grid)
            or pairing.heads == "match"
        )

    def seen(self, call: AttentionCall, *, reading: Reading, heads: Tensor | None = None) -> AttentionCall:
        """The teacher's call as the student can take it.

        Args:
            call: with all queries, or with a single one (`AttentionCall.query_row`).
            reading: "maps" mixes probabilities, "logits" mixes logits.
            heads: the teacher's head of each of the student's, (H_s,), where they are paired by "match".

        Returns:
            The same call where nothing differs.
        """
        tokens = self.student.tokens if call.layer != POOL else self.student.pool_tokens or self.student.tokens
        if heads is not None:
            call = call.heads(heads)
        elif self.pairing.heads == "mean" and self.student.heads > self.teacher.heads:
            repeated = torch.arange(self.teacher.heads, device=call.q.device)
            call = call.heads(repeated.repeat_interleave(self.student.heads // self.teacher.heads))
        average = self.pairing.heads == "mean" and self.teacher.heads > self.student.heads
        gather = self.pairing.registers == "to class" and call.tokens != tokens
        if average or gather or self.teacher.grid != self.student.grid:
            return self._mixed(call, tokens, reading, average=average, gather=gather)
        return call if call.tokens == tokens else _without_tokens(call, tokens)

    def _mixed(
        self, call: AttentionCall, tokens: Tokens, reading: Reading, *, average: bool, gather: bool
    ) -> AttentionCall:
        wide = torch.promote_types(call.q.dtype, torch.float32)
        with torch.autocast(call.q.device.type, enabled=False):
            whole = replace(call, q=call.q.to(wide), k=call.k.to(wide))
            mixed_BHNM = whole.maps() if reading == "maps" else whole.logits()
            if average:
                mixed_BHNM = mixed_BHNM.unflatten(1, (self.student.heads, -1)).mean(dim=2)
            mixed_BHNM = self._over(mixed_BHNM, call.tokens, tokens, reading, gather=gather)
            mask = mixed_BHNM.log() if reading == "maps" else mixed_BHNM
        q_BHND = call.q.new_zeros(*mask.shape[:3], self.student.head_dim)
        k_BHMD = call.q.new_zeros(*mask.shape[:2], mask.shape[3], self.student.head_dim)
        return AttentionCall(q_BHND, k_BHMD, k_BHMD, mask, 1.0, call.layer, tokens)

    def _over(self, rows_BHNM: Tensor, there: Tokens, tokens: Tokens, reading: Reading, *, gather: bool) -> Tensor:
        """Rows over the teacher's tokens as rows over the student's, for its queries where there are all."""
        total, single = rows_BHNM.shape[-1], rows_BHNM.shape[-2] == 1
        kept = _kept_tokens(there, tokens, total).to(rows_BHNM.device)
        absent = torch.ones(total, dtype=torch.bool, device=rows_BHNM.device).index_fill(0, kept, False)
        lost = rows_BHNM[..., absent].sum(dim=-1)
        rows_BHNM = rows_BHNM.index_select(-1, kept)
        if not single:
            rows_BHNM, lost = rows_BHNM.index_select(-2, kept), lost.index_select(-1, kept)
        if gather and reading == "maps":
            rows_BHNM = torch.cat([rows_BHNM[..., :1] + lost[..., None], rows_BHNM[..., 1:]], dim=-1)
        if self.teacher.grid != self.student.grid:
            rows_BHNM = self._to_grid(rows_BHNM, tokens, keep_sum=reading == "maps")
            if not single:
                rows_BHNM = self._to_grid(rows_BHNM.transpose(-2, -1), tokens, keep_sum=False).transpose(-2, -1)
        return rows_BHNM / rows_BHNM.sum(dim=-1, keepdim=True) if reading == "maps" else rows_BHNM

    def _to_grid(self, x_BHNM: Tensor, tokens: Tokens, *, keep_sum: bool) -> Tensor:
        """The last dimension from the teacher's patch grid to the student's; a row's mass on the patches stays."""
        prefix, suffix = len(tokens.prefix), tokens.suffix
        first, patches, last = x_BHNM.split([prefix, x_BHNM.shape[-1] - prefix - suffix, suffix], dim=-1)
        rows, columns = (
            _resampling(there, here, like=x_BHNM)
            for there, here in zip(self.teacher.grid, self.student.grid, strict=True)
        )
        resampled = (rows @ patches.unflatten(-1, self.teacher.grid) @ columns.T).flatten(-2)
        if keep_sum:
            total = resampled.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(resampled.dtype).tiny)
            resampled = resampled * (patches.sum(dim=-1, keepdim=True) / total)
        return torch.cat([first, resampled, last], dim=-1)


def _resampling(there: int, here: int, *, like: Tensor) -> Tensor:
    """Weights, (here, there), of linear resampling with antialiasing, as image libraries do it; rows sum to one."""
    step = there / here
    centres = (torch.arange(here, dtype=like.dtype, device=like.device) + 0.5) * step
    places = torch.arange(there, dtype=like.dtype, device=like.device) + 0.5
    weights = (1 - (places[None] - centres[:, None]).abs() / max(step, 1.0)).clamp_min(0.0)
    return weights / weights.sum(dim=1, keepdim=True)


def _without_tokens(call: AttentionCall, tokens: Tokens) -> AttentionCall:
    kept = _kept_tokens(call.tokens, tokens, call.k.shape[-2]).to(call.q.device)
    mask, single = call.mask, call.q.shape[-2] == 1
    if mask is not None:
        mask = mask if mask.shape[-1] == 1 else mask.index_select(-1, kept)
        mask = mask if single or mask.dim() < 2 or mask.shape[-2] == 1 else mask.index_select(-2, kept)
    return replace(
        call,
        q=call.q if single else call.q.index_select(-2, kept),
        k=call.k.index_select(-2, kept),
        v=call.v.index_select(-2, kept),
        mask=mask,
        tokens=tokens,
    )


def _kept_tokens(there: Tokens, tokens: Tokens, total: int) -> Tensor:
    """Of a teacher's `total` tokens those that the student has too: its kinds of prefix tokens, all patches."""
    wanted = list(tokens.prefix)
    kept = []
    for index, kind in enumerate(there.prefix):
        if kind in wanted:
            wanted.remove(kind)
            kept.append(index)
    patches = there.patches(total)
    return torch.tensor([*kept, *range(patches.start, patches.stop + tokens.suffix)])
