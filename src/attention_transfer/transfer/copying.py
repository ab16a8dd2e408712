"""Attention Copy: the student attends where the teacher attends (Li et al. 2024, arXiv 2411.09702, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from attention_transfer.attention import AttentionCall
from attention_transfer.errors import UserError, raise_all
from attention_transfer.transfer.averaging import Average, averaged
from attention_transfer.transfer.rule import OperandRule
from attention_transfer.vit import Reading, ViTSpec, wrong_choices

Parts = Literal["qk", "q", "k", "v"]


@dataclass(frozen=True, kw_only=True)
class Copy(OperandRule):
    """Use the teacher's operands in the student's attention, at training and at inference.

    With `parts="qk"` the student's attention is `softmax(scale_t · q_t k_tᵀ) v_s`: the teacher's maps, the student's
    values. No map is formed; the fused kernel gets the teacher's queries and keys.

    Attributes:
        parts: which operands are the teacher's: "qk" (the method), or "q", "k", "v" alone (the paper's variants).
        layers: blocks that copy; default all.
        heads: heads that copy; default all.
        average: the teacher's maps are averaged over a batch's images, its queries or its heads first (an ablation of
            the paper, which loses most of the gain); needs parts="qk" and all heads.
    """

    parts: Parts = "qk"
    average: Average | None = None

    def __post_init__(self) -> None:
        raise_all(wrong_choices(self, parts=Parts, average=Average | None))
        if self.average is not None and (self.parts != "qk" or self.heads is not None):
            raise UserError('Copy.average is of whole maps; leave parts at "qk" and heads out')

    @property
    def reading(self) -> Reading:
        """Maps, or single operands."""
        return "maps" if self.parts == "qk" and self.heads is None else "operands"

    @property
    def reads_values(self) -> bool:
        """Only where the values themselves are the teacher's."""
        return self.parts == "v"

    @property
    def replaces(self) -> frozenset[str]:
        """The copied parts."""
        return frozenset(self.parts)

    def problems(self, teacher: ViTSpec, student: ViTSpec) -> list[str]:
        """Single operands and single heads mix the two sides in one product, so their head dimensions must agree."""
        found = super().problems(teacher, student)
        if (self.parts != "qk" or self.heads is not None) and teacher.head_dim != student.head_dim:
            found.append(
                f"Copy(parts={self.parts!r}) mixes operands of head dimension {teacher.head_dim} (teacher) and "
                f"{student.head_dim} (student); use parts='qk' with all heads, or a student of the teacher's width"
            )
        return found

    def operands(self, student: AttentionCall, teacher: AttentionCall) -> AttentionCall:
        """The student's call with the chosen parts and heads of the teacher's, (B, H, N, D)."""
        total = student.q.shape[1]
        if self.parts == "qk" and self.binds_all_heads(total):
            teacher = averaged(teacher, self.average)
            mask = teacher.mask
            if mask is not None and mask.is_floating_point():
                mask = mask.to(student.v.dtype)
            return replace(
                student,
                q=teacher.q.to(student.v.dtype),
                k=teacher.k.to(student.v.dtype),
                mask=mask,
                scale=teacher.scale,
            )
        if self.parts == "qk" and (student.mask is not None or teacher.mask is not None):
            raise UserError("Copy of some heads only is not supported for models with attention masks or biases")
        heads = self.chosen_heads(total)
        # One product serves both kinds of head, so the teacher's queries carry the ratio of the scales.
        ratio = teacher.scale / student.scale if self.parts == "qk" else 1.0
        return replace(
            student,
            q=_mixed(student.q, teacher.q * ratio, heads) if "q" in self.parts else student.q,
            k=_mixed(student.k, teacher.k, heads) if "k" in self.parts else student.k,
            v=_mixed(student.v, teacher.v, heads) if "v" in self.parts else student.v,
        )


def _mixed(own_BHND: Tensor, taken_BHND: Tensor, heads: tuple[int, ...]) -> Tensor:
    is_taken_H11 = torch.zeros(own_BHND.shape[1], 1, 1, dtype=torch.bool, device=own_BHND.device)
    is_taken_H11[list(heads)] = True
    return torch.where(is_taken_H11, taken_BHND.to(own_BHND.dtype), own_BHND)
